"""How it is pruned."""

from __future__ import annotations

from typing import Annotated

import typer

from lthfunc.experiments.config import (
    CONTROLS,
    REWINDINGS,
    REWINDS,
    STRUCTURE_NAMES,
    STRUCTURES,
    Config,
)
from lthfunc.experiments.families import ALLOCATIONS, SCORES

from .parsing import listed, names, number, whole

_DEFAULT = Config()
_PANEL = "Pruning"

Rounds = Annotated[
    int | None,
    typer.Option(
        "--rounds",
        parser=whole,
        metavar="N",
        help=f"How often to prune; the network is trained once more than that. \\[default: {_DEFAULT.rounds}]",
        rich_help_panel=_PANEL,
    ),
]
Rate = Annotated[
    float | None,
    typer.Option(
        "--rate",
        parser=number,
        metavar="X",
        help=f"Fraction of the remaining weights to prune in each round. \\[default: {_DEFAULT.rate}]",
        rich_help_panel=_PANEL,
    ),
]
Density = Annotated[
    float | None,
    typer.Option(
        "--density",
        parser=number,
        metavar="X",
        help="Share of the weights to have left after the last round, in place of --rate; one shot with --rounds 1.",
        rich_help_panel=_PANEL,
    ),
]
Densities = Annotated[
    str | None,
    typer.Option(
        "--densities",
        metavar="X,X,…",
        help="Share of the weights to have left after each round, in place of --rate and --rounds; or "
        "package.module:function, called with --rounds.",
        rich_help_panel=_PANEL,
    ),
]
Allocate = Annotated[
    str | None,
    typer.Option(
        "--allocate",
        "--scope",
        help=f"How layers share what is kept: {listed(ALLOCATIONS)}; or package.module:function. "
        f"\\[default: {_DEFAULT.allocate}]",
        autocompletion=names(*ALLOCATIONS),
        rich_help_panel=_PANEL,
    ),
]
Floor = Annotated[
    int | None,
    typer.Option(
        "--floor",
        parser=whole,
        metavar="N",
        help=f"Weights that every layer keeps at least. \\[default: {_DEFAULT.floor}]",
        rich_help_panel=_PANEL,
    ),
]
Structure = Annotated[
    str | None,
    typer.Option(
        "--structure",
        help=f"Which masks are allowed: {STRUCTURE_NAMES}; or package.module:function. "
        f"\\[default: {_DEFAULT.structure}]",
        autocompletion=names(*STRUCTURES, "2:4", "16x16"),
        rich_help_panel=_PANEL,
    ),
]
Exempt = Annotated[
    list[str] | None,
    typer.Option(
        "--exempt",
        metavar="PATTERN",
        help="Layers without the structure, by name, e.g. 'fc3*'; repeatable.",
        rich_help_panel=_PANEL,
    ),
]
LayerRate = Annotated[
    list[str] | None,
    typer.Option(
        "--layer-rate",
        metavar="PATTERN=RATE",
        help="With --allocate layerwise, the rate of the layers whose name fits, e.g. 'conv*=0.1'; repeatable.",
        rich_help_panel=_PANEL,
    ),
]
PruneOnly = Annotated[
    list[str] | None,
    typer.Option(
        "--prune-only",
        metavar="PATTERN",
        help="Prune the parameters whose name fits, e.g. '*conv*', and no others; repeatable. "
        "\\[default: weights of linear, convolution, embedding and attention layers]",
        rich_help_panel=_PANEL,
    ),
]
Keep = Annotated[
    list[str] | None,
    typer.Option(
        "--keep",
        metavar="PATTERN",
        help="Leave the parameters whose name fits dense, e.g. 'fc*'; repeatable.",
        rich_help_panel=_PANEL,
    ),
]
ScoreName = Annotated[
    str | None,
    typer.Option(
        "--score",
        help=f"What weights are worth: {listed(SCORES)}; or package.module:function. \\[default: {_DEFAULT.score}]",
        autocompletion=names(*SCORES),
        rich_help_panel=_PANEL,
    ),
]
SynflowRounds = Annotated[
    int | None,
    typer.Option(
        "--synflow-rounds",
        parser=whole,
        metavar="N",
        help="Rounds in which SynFlow prunes to the density; more keep layers from emptying at high compression. "
        "\\[default: 100]",
        rich_help_panel=_PANEL,
    ),
]
RewindTo = Annotated[
    str | None,
    typer.Option(
        "--rewind",
        help=f"Where a pruned network starts again: {REWINDS}, or package.module:function. init is the winning ticket "
        "of the paper; sign keeps the signs alone; none and lr keep the trained weights and begin the learning rate "
        "anew (lr:K from step K); last-lr goes on at the last one (fine-tuning). "
        f"\\[default: {_DEFAULT.rewind}]",
        autocompletion=names(*REWINDINGS, "step:", "epoch:", "lr:", "sign:"),
        rich_help_panel=_PANEL,
    ),
]
Control = Annotated[
    list[str] | None,
    typer.Option(
        "--control",
        help=f"Also train this in every round, on the same batches: {', '.join(CONTROLS)}; repeatable.",
        autocompletion=names(*CONTROLS),
        rich_help_panel=_PANEL,
    ),
]
