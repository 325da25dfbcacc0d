"""Which published method prunes, and the options of those that change masks during a training."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le

from lthfunc.catalog.methods import METHODS
from lthfunc.catalog.pruning import BLOCK_BUDGETS, DROP_SCHEDULES, GROWTHS
from lthfunc.experiments.settings.setting import FIRST, PRUNING, Part, Share, Steps, setting


@dataclass(frozen=True)
class Methods:
    """Settings of methods; None is the method's own default."""

    method: str = setting(
        "imp",
        "Published method of pruning, by a name of `lthfunc methods --list`; it determines other settings, such as "
        "--score and --rewind. Or module:function.",
        FIRST, ("prune",), "NAME", names=METHODS,
    )  # fmt: skip
    dense: bool | None = setting(
        None, "Train the dense network first (round 0), which pruned networks are compared with.",
        PRUNING, ("prune",), default="with methods that prune trained networks",
    )  # fmt: skip
    update_every: Steps | None = setting(
        None, "Steps between two updates of masks that change during a training.",
        PRUNING, ("prune",),
        default="1/30 of the steps with updates; 1/40 of the training for early-bird, 1/20 for acdc",
    )  # fmt: skip
    update_until: Share | None = setting(
        None, "Share of the training after which masks no longer change.",
        PRUNING, ("prune",), default="0.75, or the method's",
    )  # fmt: skip
    drop_fraction: Part | None = setting(
        None, "Fraction of each layer's weights that an update drops and grows at first.",
        PRUNING, ("prune",), default="0.3, or the method's",
    )  # fmt: skip
    drop_schedule: str | None = setting(
        None, f"How that fraction falls until the last update: {DROP_SCHEDULES.described}.",
        PRUNING, ("prune",), names=DROP_SCHEDULES, default="cosine",
    )  # fmt: skip
    growth: str | None = setting(
        None, f"Score by which weights are grown: {GROWTHS.described}; or module:function.",
        PRUNING, ("prune",), names=GROWTHS, default="the method's",
    )  # fmt: skip
    gradient_weight: Annotated[float, Ge(0)] | None = setting(
        None, "What the size of the gradient counts, beside |w|, in the choice of weights that MEST drops.",
        PRUNING, ("prune",), default="0.01",
    )  # fmt: skip
    min_salient: Annotated[float, Ge(0), Le(1)] | None = setting(
        None, "Share of a neuron's weights that must be among the largest, or have one of the largest gradients; SRigL "
        "leaves other neurons out.",
        PRUNING, ("prune",), default="0.3",
    )  # fmt: skip
    backward_density: Annotated[float, Gt(0), Le(1)] | None = setting(
        None, "Density of the weights that Top-KAST trains, of which the largest compute.",
        PRUNING, ("prune",), default="twice the density",
    )  # fmt: skip
    gate_rate: Annotated[float, Gt(0)] | None = setting(
        None, "How many times as fast as weights their gates and thresholds learn.",
        PRUNING, ("prune",), default="50; for continuous-sparsification 1",
    )  # fmt: skip
    shrinkage: Annotated[float, Gt(0)] | None = setting(
        None, "How far group-lasso shrinks each unit while the dense network trains, in root mean squares of an "
        "average unit's initial weights.",
        PRUNING, ("prune",), default="2",
    )  # fmt: skip
    rescale_every: Steps | None = setting(
        None, "Steps between two rescalings of Sign-In's factors.",
        PRUNING, ("prune",), default="1/20 of the training",
    )  # fmt: skip
    particles: Annotated[int, Ge(2), Le(1000)] | None = setting(
        None, "Networks that SWAMP trains in each round, each on batches of its own.",
        PRUNING, ("prune",), default="4",
    )  # fmt: skip
    blocks: tuple[str, ...] = setting(
        (),
        "Submodules that are pruned one after the other, such as 'layers.*'; repeatable. By default those of one class "
        "in lists, or each layer.",
        PRUNING, ("prune",), "PATTERN",
    )  # fmt: skip
    block_budgets: str | None = setting(
        None, f"How much each block keeps: {BLOCK_BUDGETS.described}.",
        PRUNING, ("prune",), names=BLOCK_BUDGETS, default="same",
    )  # fmt: skip
