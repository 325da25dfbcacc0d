"""How networks are pruned, and where pruned networks start."""

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge, Le

from lthfunc.catalog.pruning import ALLOCATIONS, CONTROLS, REWINDINGS, SCORES, STRUCTURES
from lthfunc.experiments.settings.setting import PRUNING, Count, Part, Setting, Share

#: Commands that prune by these settings.
_PRUNERS = ("prune", "branch")


@dataclass(frozen=True)
class Pruning:
    """Settings of pruning."""

    rounds: Annotated[
        int, Ge(0), Le(10_000),
        Setting(
            "Number of pruning rounds; the network is trained once before them and once after each.",
            PRUNING, (*_PRUNERS, "methods"),
        ),
    ] = 5  # fmt: skip
    rate: Annotated[
        Share,
        Setting(
            "Fraction of the remaining weights to prune in each round.",
            PRUNING, _PRUNERS, instead_of=("density", "densities"),
        ),
    ] = 0.2  # fmt: skip
    density: Annotated[
        Share | None,
        Setting(
            "Fraction of the weights that remain after the last round, instead of --rate; one-shot with --rounds 1.",
            PRUNING, ("prune", "methods"), instead_of=("rate", "densities"),
        ),
    ] = None  # fmt: skip
    densities: Annotated[
        str | None,
        Setting(
            "Fraction of the weights that remain after each round, instead of --rate and --rounds; or "
            "package.module:function, called with --rounds.",
            PRUNING, ("prune",), "X,X,…", own=True, instead_of=("rate", "density"),
        ),
    ] = None  # fmt: skip
    synflow_rounds: Annotated[
        Count | None,
        Setting(
            "Rounds in which SynFlow prunes to the density; with more, fewer layers become empty at high compression.",
            PRUNING, ("methods",), default="100",
        ),
    ] = None  # fmt: skip
    allocate: Annotated[
        str,
        Setting(
            f"How many weights each layer keeps: {ALLOCATIONS.described}; or package.module:function.",
            PRUNING, _PRUNERS, names=ALLOCATIONS, former_names=("scope",),
        ),
    ] = "global"  # fmt: skip
    layer_rate: Annotated[
        dict[str, Part],
        Setting(
            "With --allocate layerwise, the rate of the layers whose names match, such as 'conv*=0.1'; repeatable.",
            PRUNING, _PRUNERS, "PATTERN=RATE", gives_way_to=("allocate", "arch"),
        ),
    ] = field(default_factory=dict)  # fmt: skip
    min_layer_weights: Annotated[
        int, Ge(0), Le(10**12),
        Setting("Minimum number of weights that every layer keeps.", PRUNING, _PRUNERS, former_names=("floor",)),
    ] = 0  # fmt: skip
    score: Annotated[
        str,
        Setting(
            f"Score by which weights are kept: {SCORES.described}; or package.module:function.",
            PRUNING, _PRUNERS, after="synflow_rounds", names=SCORES,
        ),
    ] = "magnitude"  # fmt: skip
    structure: Annotated[
        str,
        Setting(
            f"Which masks are allowed: {STRUCTURES.described}; or package.module:function.",
            PRUNING, _PRUNERS, names=STRUCTURES,
        ),
    ] = "unstructured"  # fmt: skip
    exempt: Annotated[
        tuple[str, ...],
        Setting(
            "Layers that need not have the structure, such as 'fc3*'; repeatable.",
            PRUNING, _PRUNERS, "PATTERN",
        ),
    ] = ()  # fmt: skip
    rewind: Annotated[
        str | None,
        Setting(
            f"State from which a pruned network is retrained: {REWINDINGS.described}; or package.module:function.",
            PRUNING, _PRUNERS, names=REWINDINGS, default="init; lr with --from-trained",
        ),
    ] = None  # fmt: skip
    control: Annotated[
        tuple[str, ...],
        Setting(
            f"Control to train in every round, on the same batches as the ticket: {CONTROLS.described}; repeatable.",
            PRUNING, ("prune", "transfer"), names=CONTROLS,
        ),
    ] = ()  # fmt: skip
