"""How it is pruned, and where pruned networks start again."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge, Le

from lthfunc.experiments.families import ALLOCATIONS, SCORES
from lthfunc.experiments.settings.setting import PRUNING, Count, Part, Setting, Share

#: Structures without numbers.
STRUCTURES = ("unstructured", "per-output", "units")
STRUCTURE_NAMES = f"{', '.join(STRUCTURES)}, N:M (2:4), RxC (16x16 blocks)"
CONTROLS = ("reinit", "random-mask", "layer-random-mask", "shuffled-mask", "inverted-mask")
#: Rewindings without a number; a test holds them equal to starting.py's.
REWINDINGS = ("init", "sign", "lr", "none", "last-lr", "reinit")
REWINDS = f"{', '.join(REWINDINGS)}, step:K or epoch:K"

#: Commands that prune as they are told.
_PRUNERS = ("prune", "branch")


def _listed(family: Mapping[str, str]) -> str:
    """A family's names with what each is."""
    return ", ".join(f"{name} ({about})" for name, about in family.items())


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
            PRUNING, _PRUNERS, gives_way_to=("density", "densities"),
        ),
    ] = 0.2  # fmt: skip
    density: Annotated[
        Share | None,
        Setting(
            "Share of the weights to have left after the last round, in place of --rate; one shot with --rounds 1.",
            PRUNING, ("prune", "methods"),
        ),
    ] = None  # fmt: skip
    densities: Annotated[
        str | None,
        Setting(
            "Share of the weights to have left after each round, in place of --rate and --rounds; or "
            "package.module:function, called with --rounds.",
            PRUNING, ("prune",), "X,X,…", own=True,
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
            f"How layers share what is kept: {_listed(ALLOCATIONS)}; or package.module:function.",
            PRUNING, _PRUNERS, choices=tuple(ALLOCATIONS), own=True, aliases=("scope",),
        ),
    ] = "global"  # fmt: skip
    layer_rate: Annotated[
        dict[str, Part],
        Setting(
            "With --allocate layerwise, the rate of the layers whose name fits, e.g. 'conv*=0.1'; repeatable.",
            PRUNING, _PRUNERS, "PATTERN=RATE", gives_way_to=("allocate", "arch"),
        ),
    ] = field(default_factory=dict)  # fmt: skip
    floor: Annotated[
        int, Ge(0), Le(10**12),
        Setting("Weights that every layer keeps at least.", PRUNING, _PRUNERS),
    ] = 0  # fmt: skip
    score: Annotated[
        str,
        Setting(
            f"What weights are worth: {_listed(SCORES)}; or package.module:function.",
            PRUNING, _PRUNERS, after="synflow_rounds", choices=tuple(SCORES), own=True,
        ),
    ] = "magnitude"  # fmt: skip
    structure: Annotated[
        str,
        Setting(
            f"Which masks are allowed: {STRUCTURE_NAMES}; or package.module:function.",
            PRUNING, _PRUNERS, own=True, offers=(*STRUCTURES, "2:4", "16x16"),
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
            f"Where a pruned network starts again: {REWINDS}, or package.module:function. init is the winning ticket "
            "of the paper; sign keeps the signs alone; none and lr keep the trained weights and begin the learning "
            "rate anew (lr:K from step K); last-lr goes on at the last one (fine-tuning).",
            PRUNING, _PRUNERS, own=True, offers=(*REWINDINGS, "step:", "epoch:", "lr:", "sign:"),
        ),
    ] = "init"  # fmt: skip
    control: Annotated[
        tuple[str, ...],
        Setting(
            f"Also train this in every round, on the same batches: {', '.join(CONTROLS)}; repeatable.",
            PRUNING, ("prune", "transfer"), choices=CONTROLS,
        ),
    ] = ()  # fmt: skip
