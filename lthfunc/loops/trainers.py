"""Callbacks that prune in other people's trainers, whose packages are imported when one is made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lthfunc.arguments import public
from lthfunc.errors import UserError
from lthfunc.loops.plans import LoopPlan, Rewind
from lthfunc.loops.trainer_rounds import TrainerRounds


@public
def lightning_callback(
    plan: LoopPlan,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    rewind: Rewind | None = None,
    anchor_step: int = 0,
    prune_only: Sequence[str] = (),
    never_prune: Sequence[str] = (),
) -> Any:
    """Make a callback of Lightning that prunes what its Trainer trains: ``Trainer(callbacks=[…])``.

    Optimisers and learning-rate schedules are those of ``configure_optimizers``. The Trainer's checkpoints hold the
    masks, the anchor and the round.

    plan: a transformation such as ``lf.prune(fraction=0.2)``, or a list of (step, transformation). epochs, steps: how
    long each round of a transformation lasts; the Trainer's ``max_epochs`` or ``max_steps`` is that of all rounds
    together, and no pruning follows the last. rewind, anchor_step, prune_only, never_prune: as of `attach`.

    Returns a `Callback`, whose `attached` is an `Attached` once training has begun. Raises UserError where epochs,
    steps and plan don't go together, or Lightning is not installed; and from ``fit``, for what `attach` refuses, a plan
    longer than the training, and a checkpoint of other masks or another plan.

    >>> try:
    ...     lf.lightning_callback(lf.prune(fraction=0.5))
    ... except lf.UserError as error:
    ...     print(error)
    lightning_callback: give epochs or steps, how long each round lasts
    """
    where = "lightning_callback"
    names = {"prune_only": prune_only, "never_prune": never_prune}
    rounds = TrainerRounds(where, plan, epochs, steps, rewind, anchor_step, **names)
    try:
        from lthfunc.loops.lightning import LightningPruning
    except ImportError as error:
        raise UserError(f"{where}: needs Lightning (pip install 'lthfunc[trainers]')") from error
    return LightningPruning(rounds)


@public
def transformers_callback(
    plan: LoopPlan,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    rewind: Rewind | None = None,
    anchor_step: int = 0,
    prune_only: Sequence[str] = (),
    never_prune: Sequence[str] = (),
) -> Any:
    """Make a callback of Hugging Face transformers that prunes what its Trainer trains: ``Trainer(callbacks=[…])``.

    The optimiser's file in the Trainer's checkpoints holds the masks, the anchor and the round.

    plan: a transformation such as ``lf.prune(fraction=0.2)``, or a list of (step, transformation). epochs, steps: how
    long each round of a transformation lasts; ``num_train_epochs`` or ``max_steps`` is that of all rounds together, and
    no pruning follows the last. rewind, anchor_step, prune_only, never_prune: as of `attach`.

    Returns a `TrainerCallback`, whose `attached` is an `Attached` once training has begun. Raises UserError where
    epochs, steps and plan don't go together, or transformers is not installed; and from ``train``, for what `attach`
    refuses, a plan longer than the training, and a checkpoint of other masks or another plan.

    >>> try:
    ...     lf.transformers_callback([(100, lf.prune(density=0.1))], epochs=2)
    ... except lf.UserError as error:
    ...     print(error)
    transformers_callback: epochs and steps are for a transformation, and this plan has steps of its own
    """
    where = "transformers_callback"
    names = {"prune_only": prune_only, "never_prune": never_prune}
    rounds = TrainerRounds(where, plan, epochs, steps, rewind, anchor_step, **names)
    try:
        from lthfunc.loops.transformers import TransformersPruning
    except ImportError as error:
        raise UserError(f"{where}: needs transformers and accelerate (pip install 'lthfunc[trainers]')") from error
    return TransformersPruning(rounds)
