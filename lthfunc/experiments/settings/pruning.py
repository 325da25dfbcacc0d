"""How it is pruned, and where pruned networks start again."""

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge, Le

from lthfunc.catalog.pruning import ALLOCATIONS, CONTROLS, REWINDINGS, SCORES, STRUCTURES
from lthfunc.experiments.settings.setting import PRUNING, Count, Part, Setting, Share

#: Commands that prune as they are told.
_PRUNERS = ("prune", "branch")


@dataclass(frozen=True)
class Pruning:
    """Settings of pruning."""

    rounds: Annotated[
        int, Ge(0), Le(10_000),
        Setting(
            "How often to prune; the network is trained once more than that.",
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
            "Share of the weights to have left after the last round, in place of --rate; one shot with --rounds 1.",
            PRUNING, ("prune", "methods"), instead_of=("rate", "densities"),
        ),
    ] = None  # fmt: skip
    densities: Annotated[
        str | None,
        Setting(
            "Share of the weights to have left after each round, in place of --rate and --rounds; or "
            "package.module:function, called with --rounds.",
            PRUNING, ("prune",), "X,X,…", own=True, instead_of=("rate", "density"),
        ),
    ] = None  # fmt: skip
    synflow_rounds: Annotated[
        Count | None,
        Setting(
            "Rounds in which SynFlow prunes to the density; more keep layers from emptying at high compression.",
            PRUNING, ("methods",), default="100",
        ),
    ] = None  # fmt: skip
    allocate: Annotated[
        str,
        Setting(
            f"How layers share what is kept: {ALLOCATIONS.described}; or package.module:function.",
            PRUNING, _PRUNERS, names=ALLOCATIONS, former_names=("scope",),
        ),
    ] = "global"  # fmt: skip
    layer_rate: Annotated[
        dict[str, Part],
        Setting(
            "With --allocate layerwise, the rate of the layers whose name fits, e.g. 'conv*=0.1'; repeatable.",
            PRUNING, _PRUNERS, "PATTERN=RATE", gives_way_to=("allocate", "arch"),
        ),
    ] = field(default_factory=dict)  # fmt: skip
    min_layer_weights: Annotated[
        int, Ge(0), Le(10**12),
        Setting("Number of weights that every layer keeps at least.", PRUNING, _PRUNERS, former_names=("floor",)),
    ] = 0  # fmt: skip
    score: Annotated[
        str,
        Setting(
            f"What weights are worth: {SCORES.described}; or package.module:function.",
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
            "Layers without the structure, by name, e.g. 'fc3*'; repeatable.",
            PRUNING, _PRUNERS, "PATTERN",
        ),
    ] = ()  # fmt: skip
    rewind: Annotated[
        str,
        Setting(
            f"Where a pruned network starts again: {REWINDINGS.described}; or package.module:function.",
            PRUNING, _PRUNERS, names=REWINDINGS,
        ),
    ] = "init"  # fmt: skip
    control: Annotated[
        tuple[str, ...],
        Setting(
            f"Also train this in every round, on the same batches: {CONTROLS.described}; repeatable.",
            PRUNING, ("prune", "transfer"), names=CONTROLS,
        ),
    ] = ()  # fmt: skip
