"""Recovery from losses and gradients that are not finite: find the step, and stop before it or leave it out.

Steps are not checked one by one, which would cost time in each. A non-finite loss or gradient shows in the sum of
losses or in the params at the next check; the steps since the last check are then repeated one at a time. They see the
same batches and random numbers, so what follows has the same bits wherever the repetition began.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from lthfunc.errors import DivergedError
from lthfunc.training.optimizer_states import schedule_in
from lthfunc.training.packed_fits import AnyFit, unfinished_fits
from lthfunc.training.results import SinceLastPoint, Stopped
from lthfunc.training.schedules import rate_at
from lthfunc.training.session import Snapshot, TrainingSession
from lthfunc.trees.types import TrainState


def recover_from_nonfinite(
    training: TrainingSession, snapshot: Snapshot, seeds: Sequence[int], look: int, fits: Sequence[AnyFit]
) -> Snapshot:
    """Repeat the steps from the snapshot to step `look` one at a time; the training then stands there, finite.

    A step that is not finite is left out: it changes nothing but the step number. Raises DivergedError at such a step
    if the trainer is to stop there, after saving the states before it, and where no step of a state was finite. Raises
    Stopped.
    """
    errors: dict[int, DivergedError] = {}
    checkpointer = training.checkpointer
    training.restart(*snapshot)
    with training.drawing():
        states, since = training.now()
        while int(states[0].step) < look:
            if checkpointer is not None and training.asked(checkpointer):
                checkpointer.save(unfinished_fits(fits, states, since))
                raise Stopped
            training.one()
            after, sums = training.now()
            bad = [number for number, fine in enumerate(training.are_finite((after, sums))) if not fine]
            for number in bad:
                error = _error(states[number], since[number], sums[number], seeds, number)
                if training.trainer.on_nonfinite == "stop":
                    if checkpointer is not None:
                        checkpointer.save(unfinished_fits(fits, states, since))
                    raise error
                errors[number] = error
                after[number] = states[number]._replace(step=after[number].step)
                sums[number] = since[number]._replace(random=sums[number].random)
            states, since = after, sums
            if bad:
                training.restart(states, since, drawing=True)
    for number, error in errors.items():
        if not since[number].steps:
            raise error
    return states, since


def _error(
    state: TrainState, before: SinceLastPoint, after: SinceLastPoint, seeds: Sequence[int], number: int
) -> DivergedError:
    step = int(state.step)
    what = "gradient" if math.isfinite(after.loss) else f"loss ({after.loss - before.loss})"
    table = schedule_in(state.opt)
    rate = "" if table is None else f", learning rate {float(rate_at(table, state.step)):g}"
    who = f"seed {seeds[number]}: " if len(seeds) > 1 else ""
    return DivergedError(
        f"{who}training diverged: the {what} of step {step + 1} is not finite{rate}; a smaller lr may help, or "
        "on_nonfinite 'skip', which leaves such steps out"
    )
