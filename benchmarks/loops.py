"""Our training loop, measured between two evaluations."""

from __future__ import annotations

from lthfunc.deployment.timing import TimedFunction
from lthfunc.training.session import TrainingSession
from lthfunc.training.trainer import Trainer
from lthfunc.trees.types import TrainState

_END = 10**9


def going_on(trainer: Trainer, state: TrainState) -> TimedFunction:
    """Steps of the loop that users run, which continues from call to call.

    It stays open: a call of `take_steps` for each timing would copy the state in and out once for a few steps of a
    large network, where a user's training does for hundreds.
    """
    training, step = TrainingSession(trainer, [state], [0], _END), int(state.step)

    def run(n: int) -> None:
        nonlocal step
        step += n
        training.to(step)

    return run
