"""How networks are pruned, and where pruned networks start."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le

from lthfunc.catalog.pruning import ALLOCATIONS, CONTROLS, REWINDINGS, SCORES, STRUCTURES
from lthfunc.experiments.settings.setting import FIRST, PRUNING, Count, Part, Share, setting

#: Commands that prune by these settings.
_PRUNERS = ("prune", "branch")


@dataclass(frozen=True)
class Pruning:
    """Settings of pruning."""

    rounds: Annotated[int, Ge(0), Le(10_000)] | None = setting(
        None, "Number of pruning rounds; the network is trained once before them and once after each.",
        FIRST, (*_PRUNERS, "methods"), default="5; 1 with a --method of one training",
    )  # fmt: skip
    rate: Share = setting(
        0.2, "Fraction of the remaining weights to prune, i.e. to set to zero for good, in each round.",
        FIRST, _PRUNERS, instead_of=("density", "densities"),
    )  # fmt: skip
    density: Share | None = setting(
        None,
        "Density to reach: the fraction of the weights that remain after the last round, instead of --rate; one-shot "
        "with --rounds 1.",
        PRUNING, ("prune", "methods"), instead_of=("rate", "densities"),
    )  # fmt: skip
    densities: str | None = setting(
        None, "Fraction of the weights that remain after each round, instead of --rate and --rounds, or at which "
        "methods are compared; for `prune` also module:function, called with --rounds.",
        PRUNING, ("prune", "methods"), "X,X,…", own=True, instead_of=("rate", "density"),
    )  # fmt: skip
    score_rounds: Count | None = setting(
        None,
        "Rounds in which a score at initialisation prunes to the density, computed anew in each: of SynFlow, SNIP, "
        "GraSP and FORCE. With more, fewer layers become empty at high compression.",
        PRUNING, ("prune", "methods"), default="100 for synflow, 30 for force, 1 for snip and grasp",
        former_names=("synflow_rounds",),
    )  # fmt: skip
    allocate: str | None = setting(
        None, f"How many weights each layer keeps: {ALLOCATIONS.described}; or module:function.",
        PRUNING, _PRUNERS, names=ALLOCATIONS, former_names=("scope",), default="global, or the --method's",
    )  # fmt: skip
    layer_rate: dict[str, Part] = setting(
        {}, "With --allocate layerwise, the rate of the layers whose names match, such as 'conv*=0.1'; repeatable.",
        PRUNING, _PRUNERS, "PATTERN=RATE", gives_way_to=("allocate", "arch"),
    )  # fmt: skip
    min_layer_weights: Annotated[int, Ge(0), Le(10**12)] = setting(
        0, "Minimum number of weights that every layer keeps.", PRUNING, _PRUNERS, former_names=("floor",)
    )
    score: str | None = setting(
        None, f"Score by which weights are kept: {SCORES.described}; or module:function.",
        PRUNING, _PRUNERS, after="score_rounds", names=SCORES, default="magnitude, or the --method's",
    )  # fmt: skip
    structure: str = setting(
        "unstructured",
        f"Which masks (choices of what remains) are allowed: {STRUCTURES.described}; or module:function.",
        PRUNING, _PRUNERS, names=STRUCTURES,
    )  # fmt: skip
    exempt: tuple[str, ...] = setting(
        (), "Layers that need not have the structure, such as 'fc3*'; repeatable.", PRUNING, _PRUNERS, "PATTERN"
    )
    group_multiple: Annotated[int, Ge(1), Le(2**20)] = setting(
        1,
        "With --structure heads, residual or groups, each width keeps a multiple of so many channels or features.",
        PRUNING, _PRUNERS,
    )  # fmt: skip
    rewind: str | None = setting(
        None, f"State from which a pruned network is retrained: {REWINDINGS.described}; or module:function.",
        PRUNING, _PRUNERS, names=REWINDINGS, default="init; lr with --from-trained",
    )  # fmt: skip
    control: tuple[str, ...] = setting(
        (),
        "Control to compare the ticket with, trained in every round on the same batches: "
        f"{CONTROLS.described}; repeatable.",
        FIRST, ("prune", "transfer"), names=CONTROLS,
    )  # fmt: skip
