"""How it is trained."""

from __future__ import annotations

from typing import Annotated

import typer

from lthfunc.experiments.config import (
    LOSSES,
    METRIC_NAMES,
    METRICS,
    OPTIMIZERS,
    SCHEDULES,
    Config,
)

from .parsing import names, number, whole

_DEFAULT = Config()
_PANEL = "Training"

Epochs = Annotated[
    int | None,
    typer.Option(
        "--epochs",
        parser=whole,
        metavar="N",
        help="Length of each training, in passes over the data. \\[default: the data set's]",
        rich_help_panel=_PANEL,
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        "--steps", parser=whole, metavar="N", help="Length of each training, in batches.", rich_help_panel=_PANEL
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        parser=whole,
        metavar="N",
        help="Examples per batch. \\[default: the network's]",
        rich_help_panel=_PANEL,
    ),
]
OptimizerName = Annotated[
    str | None,
    typer.Option(
        "--optimizer",
        help=f"{', '.join(OPTIMIZERS)}, or package.module:function. \\[default: the network's]",
        autocompletion=names(*OPTIMIZERS),
        rich_help_panel=_PANEL,
    ),
]
Lr = Annotated[
    float | None,
    typer.Option(
        "--lr", parser=number, metavar="X", help="Learning rate. \\[default: the network's]", rich_help_panel=_PANEL
    ),
]
LrFinal = Annotated[
    float | None,
    typer.Option(
        "--lr-final",
        parser=number,
        metavar="X",
        help="Rate that a falling --schedule ends at, and goes on at. \\[default: the schedule's: 0, 4e-6 of --lr for "
        "one-cycle, 7 % of it for triangular]",
        rich_help_panel=_PANEL,
    ),
]
Momentum = Annotated[
    float | None,
    typer.Option("--momentum", parser=number, metavar="X", help="Momentum of sgd and muon.", rich_help_panel=_PANEL),
]
Nesterov = Annotated[
    bool | None,
    typer.Option("--nesterov/--no-nesterov", help="Nesterov momentum. \\[default: no]", rich_help_panel=_PANEL),
]
WeightDecay = Annotated[
    float | None,
    typer.Option("--weight-decay", parser=number, metavar="X", help="Weight decay.", rich_help_panel=_PANEL),
]
ScheduleName = Annotated[
    str | None,
    typer.Option(
        "--schedule",
        help=f"Learning rate over a training: {', '.join(SCHEDULES)}. \\[default: {_DEFAULT.schedule}]",
        autocompletion=names(*SCHEDULES),
        rich_help_panel=_PANEL,
    ),
]
Milestone = Annotated[
    list[int] | None,
    typer.Option(
        "--milestone",
        parser=whole,
        metavar="N",
        help="With --schedule step, a step at which the rate drops to a tenth; repeatable. \\[default: 2/3 and 5/6 of "
        "the training]",
        rich_help_panel=_PANEL,
    ),
]
Cycles = Annotated[
    int | None,
    typer.Option(
        "--cycles",
        parser=whole,
        metavar="N",
        help=f"With --schedule cyclic, cosines in a training. \\[default: {_DEFAULT.cycles}]",
        rich_help_panel=_PANEL,
    ),
]
Warmup = Annotated[
    int | None,
    typer.Option(
        "--warmup",
        parser=whole,
        metavar="N",
        help=f"Steps over which the rate rises. \\[default: {_DEFAULT.warmup}]",
        rich_help_panel=_PANEL,
    ),
]
Augment = Annotated[
    bool | None,
    typer.Option(
        "--augment/--no-augment",
        help="Shift and mirror training images. \\[default: for cifar10 and cifar100]",
        rich_help_panel=_PANEL,
    ),
]
LossName = Annotated[
    str | None,
    typer.Option(
        "--loss",
        help=f"{', '.join(LOSSES)}, or package.module:function; auto is cross-entropy for classes, mse for numbers. "
        f"\\[default: {_DEFAULT.loss}]",
        autocompletion=names(*LOSSES),
        rich_help_panel=_PANEL,
    ),
]
LabelSmoothing = Annotated[
    float | None,
    typer.Option(
        "--label-smoothing",
        parser=number,
        metavar="X",
        help=f"Share of each target spread over all classes. \\[default: {_DEFAULT.label_smoothing:g}]",
        rich_help_panel=_PANEL,
    ),
]
MetricName = Annotated[
    str | None,
    typer.Option(
        "--metric",
        help=f"What stands as accuracy in tables and files: {METRIC_NAMES}, or package.module:function; auto is "
        f"accuracy for classes, r2 for numbers. \\[default: {_DEFAULT.metric}]",
        autocompletion=names(*METRICS, "top-5"),
        rich_help_panel=_PANEL,
    ),
]
EvalEvery = Annotated[
    int | None,
    typer.Option(
        "--eval-every",
        parser=whole,
        metavar="N",
        help="Steps between two looks at the validation split. \\[default: 5 to 25 looks, 5 % of the work]",
        rich_help_panel=_PANEL,
    ),
]
