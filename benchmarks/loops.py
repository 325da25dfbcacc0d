"""Our training loop, measured between two evaluations."""

from __future__ import annotations

from lthfunc.deployment.timing import TimedFunction
from lthfunc.training.session import TrainingSession
from lthfunc.training.trainer import Trainer
from lthfunc.trees.types import TrainState

_END = 10**9


def user_loop(trainer: Trainer, state: TrainState) -> TimedFunction:
    """Steps of the loop that users run. Each call continues where the last one ended.

    One session serves all calls: `take_steps` would copy the state in and out in each, for a few steps of a large
    network, where a user's training does so once in hundreds of steps.
    """
    training, step = TrainingSession(trainer, [state], [0], _END), int(state.step)

    def run(n: int) -> None:
        nonlocal step
        step += n
        training.to(step)

    return run
