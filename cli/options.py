"""The options that commands share. None means "not given": a configuration file or a default then decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from lthfunc.data.catalog import DATA_DIR_VARIABLE, DATASETS, KINDS
from lthfunc.errors import invalid
from lthfunc.experiments.config import (
    CONTROLS,
    ENGINES,
    LOSSES,
    METRIC_NAMES,
    METRICS,
    OPTIMIZERS,
    PRECISIONS,
    REWINDINGS,
    REWINDS,
    SCHEDULES,
    STRUCTURE_NAMES,
    STRUCTURES,
    Config,
)
from lthfunc.experiments.families import ALLOCATIONS, SCORES
from lthfunc.experiments.recipes import RECIPES
from lthfunc.models.catalog import ALIASES, ARCHS

_DEFAULT = Config()


def whole(text: str) -> int:
    """A whole number, or a mistake told in one line."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a whole number") from None


def number(text: str) -> float:
    """A number, or a mistake told in one line."""
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number") from None


_WHAT, _PRUNING, _TRAINING, _RUN = "What", "Pruning", "Training", "The run"


def names(*known: str) -> Callable[[str], list[str]]:
    """Completion among these."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in known if name.startswith(incomplete)]

    return complete


def layer_rates(texts: list[str]) -> dict[str, float]:
    """PATTERN=RATE each. Raises UserError."""
    return dict(_layer_rate(text) for text in texts)


def named_values(option: str, texts: list[str]) -> dict[str, str]:
    """NAME=VALUE each. Raises UserError."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise invalid(option, text, "NAME=VALUE, e.g. width=2")
        found[name] = value
    return found


def _layer_rate(text: str) -> tuple[str, float]:
    pattern, equals, rate = text.rpartition("=")
    try:
        value = float(rate)
    except ValueError:
        value = None
    if not equals or not pattern or value is None:
        raise invalid("--layer-rate", text, "PATTERN=RATE, e.g. 'conv*=0.1'")
    return pattern, value


def _listed(family: dict[str, str]) -> str:
    return ", ".join(f"{name} ({about})" for name, about in family.items())


Arch = Annotated[
    str | None,
    typer.Option(
        "--arch",
        help="Network: one of `lthfunc archs`, torchvision:NAME, timm:NAME, package.module:function or "
        f"path/to/file.py:name. \\[default: {_DEFAULT.arch}]",
        autocompletion=names(*ARCHS, *ALIASES),
        rich_help_panel=_WHAT,
    ),
]
ArchOption = Annotated[
    list[str] | None,
    typer.Option(
        "--arch-option",
        metavar="NAME=VALUE",
        help="An argument of the network, e.g. width=2; repeatable.",
        rich_help_panel=_WHAT,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        help="Start from these instead of random ones: a .safetensors file, or (torchvision:, timm:) the name of "
        "weights that are on the disk, e.g. DEFAULT. An output layer of another size is drawn anew.",
        rich_help_panel=_WHAT,
    ),
]
PruneOnly = Annotated[
    list[str] | None,
    typer.Option(
        "--prune-only",
        metavar="PATTERN",
        help="Prune the parameters whose name fits, e.g. '*conv*', and no others; repeatable. "
        "\\[default: weights of linear, convolution, embedding and attention layers]",
        rich_help_panel=_PRUNING,
    ),
]
Keep = Annotated[
    list[str] | None,
    typer.Option(
        "--keep",
        metavar="PATTERN",
        help="Leave the parameters whose name fits dense, e.g. 'fc*'; repeatable.",
        rich_help_panel=_PRUNING,
    ),
]
DataSetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--dataset-option",
        metavar="NAME=VALUE",
        help="An argument of the data set, e.g. size=32, val=0.2, length=128; repeatable.",
        rich_help_panel=_WHAT,
    ),
]
SkipBroken = Annotated[
    bool | None,
    typer.Option("--skip-broken", help="Leave out images that cannot be read.", rich_help_panel=_WHAT),
]
Recipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        help="A paper's settings by name (`lthfunc recipes`): "
        f"{', '.join(RECIPES)}. Other options and --config win over it.",
        autocompletion=names(*RECIPES),
        rich_help_panel=_WHAT,
    ),
]
DataSet = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        help="Data set: one of `lthfunc datasets`, folder:PATH, npz:FILE, hf:NAME, text:FILE, planted, a .safetensors "
        f"file, package.module:function or path/to/file.py:name. \\[default: {_DEFAULT.dataset}]",
        autocompletion=names(*DATASETS, *(f"{kind}:" for kind in KINDS if kind != "planted"), "planted"),
        rich_help_panel=_WHAT,
    ),
]
DataDir = Annotated[
    str | None,
    typer.Option(
        "--data-dir",
        help=f"Folder that holds the data sets, or to download them to. \\[default: ${DATA_DIR_VARIABLE}, or the "
        "user's cache]",
        rich_help_panel=_WHAT,
    ),
]
ConfigFile = Annotated[
    str | None,
    typer.Option(
        "--config",
        help="TOML file with any of these options (layer_rate = {...}); options typed here win over it. Every run "
        "writes its own.",
        rich_help_panel=_WHAT,
    ),
]

Rounds = Annotated[
    int | None,
    typer.Option(
        "--rounds",
        parser=whole,
        metavar="N",
        help=f"How often to prune; the network is trained once more than that. \\[default: {_DEFAULT.rounds}]",
        rich_help_panel=_PRUNING,
    ),
]
Rate = Annotated[
    float | None,
    typer.Option(
        "--rate",
        parser=number,
        metavar="X",
        help=f"Fraction of the remaining weights to prune in each round. \\[default: {_DEFAULT.rate}]",
        rich_help_panel=_PRUNING,
    ),
]
Density = Annotated[
    float | None,
    typer.Option(
        "--density",
        parser=number,
        metavar="X",
        help="Share of the weights to have left after the last round, in place of --rate; one shot with --rounds 1.",
        rich_help_panel=_PRUNING,
    ),
]
Densities = Annotated[
    str | None,
    typer.Option(
        "--densities",
        metavar="X,X,…",
        help="Share of the weights to have left after each round, in place of --rate and --rounds; or "
        "package.module:function, called with --rounds.",
        rich_help_panel=_PRUNING,
    ),
]
Allocate = Annotated[
    str | None,
    typer.Option(
        "--allocate",
        "--scope",
        help=f"How layers share what is kept: {_listed(ALLOCATIONS)}; or package.module:function. "
        f"\\[default: {_DEFAULT.allocate}]",
        autocompletion=names(*ALLOCATIONS),
        rich_help_panel=_PRUNING,
    ),
]
Floor = Annotated[
    int | None,
    typer.Option(
        "--floor",
        parser=whole,
        metavar="N",
        help=f"Weights that every layer keeps at least. \\[default: {_DEFAULT.floor}]",
        rich_help_panel=_PRUNING,
    ),
]
Structure = Annotated[
    str | None,
    typer.Option(
        "--structure",
        help=f"Which masks are allowed: {STRUCTURE_NAMES}; or package.module:function. "
        f"\\[default: {_DEFAULT.structure}]",
        autocompletion=names(*STRUCTURES, "2:4", "16x16"),
        rich_help_panel=_PRUNING,
    ),
]
Exempt = Annotated[
    list[str] | None,
    typer.Option(
        "--exempt",
        metavar="PATTERN",
        help="Layers without the structure, by name, e.g. 'fc3*'; repeatable.",
        rich_help_panel=_PRUNING,
    ),
]
LayerRate = Annotated[
    list[str] | None,
    typer.Option(
        "--layer-rate",
        metavar="PATTERN=RATE",
        help="With --allocate layerwise, the rate of the layers whose name fits, e.g. 'conv*=0.1'; repeatable.",
        rich_help_panel=_PRUNING,
    ),
]
ScoreName = Annotated[
    str | None,
    typer.Option(
        "--score",
        help=f"What weights are worth: {_listed(SCORES)}; or package.module:function. \\[default: {_DEFAULT.score}]",
        autocompletion=names(*SCORES),
        rich_help_panel=_PRUNING,
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
        rich_help_panel=_PRUNING,
    ),
]
Control = Annotated[
    list[str] | None,
    typer.Option(
        "--control",
        help=f"Also train this in every round, on the same batches: {', '.join(CONTROLS)}; repeatable.",
        autocompletion=names(*CONTROLS),
        rich_help_panel=_PRUNING,
    ),
]

Epochs = Annotated[
    int | None,
    typer.Option(
        "--epochs",
        parser=whole,
        metavar="N",
        help="Length of each training, in passes over the data. \\[default: the data set's]",
        rich_help_panel=_TRAINING,
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        "--steps", parser=whole, metavar="N", help="Length of each training, in batches.", rich_help_panel=_TRAINING
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        parser=whole,
        metavar="N",
        help="Examples per batch. \\[default: the network's]",
        rich_help_panel=_TRAINING,
    ),
]
OptimizerName = Annotated[
    str | None,
    typer.Option(
        "--optimizer",
        help=f"{', '.join(OPTIMIZERS)}, or package.module:function. \\[default: the network's]",
        autocompletion=names(*OPTIMIZERS),
        rich_help_panel=_TRAINING,
    ),
]
Lr = Annotated[
    float | None,
    typer.Option(
        "--lr", parser=number, metavar="X", help="Learning rate. \\[default: the network's]", rich_help_panel=_TRAINING
    ),
]
Momentum = Annotated[
    float | None,
    typer.Option("--momentum", parser=number, metavar="X", help="Momentum of sgd and muon.", rich_help_panel=_TRAINING),
]
Nesterov = Annotated[
    bool | None,
    typer.Option("--nesterov/--no-nesterov", help="Nesterov momentum. \\[default: no]", rich_help_panel=_TRAINING),
]
WeightDecay = Annotated[
    float | None,
    typer.Option("--weight-decay", parser=number, metavar="X", help="Weight decay.", rich_help_panel=_TRAINING),
]
ScheduleName = Annotated[
    str | None,
    typer.Option(
        "--schedule",
        help=f"Learning rate over a training: {', '.join(SCHEDULES)}. \\[default: {_DEFAULT.schedule}]",
        autocompletion=names(*SCHEDULES),
        rich_help_panel=_TRAINING,
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
        rich_help_panel=_TRAINING,
    ),
]
Cycles = Annotated[
    int | None,
    typer.Option(
        "--cycles",
        parser=whole,
        metavar="N",
        help=f"With --schedule cyclic, cosines in a training. \\[default: {_DEFAULT.cycles}]",
        rich_help_panel=_TRAINING,
    ),
]
Warmup = Annotated[
    int | None,
    typer.Option(
        "--warmup",
        parser=whole,
        metavar="N",
        help=f"Steps over which the rate rises. \\[default: {_DEFAULT.warmup}]",
        rich_help_panel=_TRAINING,
    ),
]
Augment = Annotated[
    bool | None,
    typer.Option(
        "--augment/--no-augment",
        help="Shift and mirror training images. \\[default: for cifar10 and cifar100]",
        rich_help_panel=_TRAINING,
    ),
]
LossName = Annotated[
    str | None,
    typer.Option(
        "--loss",
        help=f"{', '.join(LOSSES)}, or package.module:function; auto is cross-entropy for classes, mse for numbers. "
        f"\\[default: {_DEFAULT.loss}]",
        autocompletion=names(*LOSSES),
        rich_help_panel=_TRAINING,
    ),
]
LabelSmoothing = Annotated[
    float | None,
    typer.Option(
        "--label-smoothing",
        parser=number,
        metavar="X",
        help=f"Share of each target spread over all classes. \\[default: {_DEFAULT.label_smoothing:g}]",
        rich_help_panel=_TRAINING,
    ),
]
MetricName = Annotated[
    str | None,
    typer.Option(
        "--metric",
        help=f"What stands as accuracy in tables and files: {METRIC_NAMES}, or package.module:function; auto is "
        f"accuracy for classes, r2 for numbers. \\[default: {_DEFAULT.metric}]",
        autocompletion=names(*METRICS, "top-5"),
        rich_help_panel=_TRAINING,
    ),
]
EvalEvery = Annotated[
    int | None,
    typer.Option(
        "--eval-every",
        parser=whole,
        metavar="N",
        help="Steps between two looks at the validation split. \\[default: 5 to 25 looks, 5 % of the work]",
        rich_help_panel=_TRAINING,
    ),
]

Seed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        parser=whole,
        metavar="N",
        help=f"Decides the initial weights and the order of the data. \\[default: {_DEFAULT.seed}]",
        rich_help_panel=_RUN,
    ),
]
Replicates = Annotated[
    int | None,
    typer.Option(
        "--replicates",
        parser=whole,
        metavar="N",
        help=f"Run so many seeds (seed, seed+1, …) and report mean ± standard deviation. "
        f"\\[default: {_DEFAULT.replicates}]",
        rich_help_panel=_RUN,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        help="auto (a GPU where there is one), cpu, cuda or cuda:N. \\[default: auto]",
        autocompletion=names("auto", "cpu", "cuda"),
        rich_help_panel=_RUN,
    ),
]
Engine = Annotated[
    str | None,
    typer.Option(
        "--engine",
        help="How steps are run: eager, compile, sparse (surviving weights alone, on a CPU), sparse/compile (sparse "
        "where that is faster), or auto: sparse/compile for runs of 3,000 steps and more, where it can be. "
        f"\\[default: {_DEFAULT.engine}]",
        autocompletion=names(*ENGINES),
        rich_help_panel=_RUN,
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        help=f"What products are computed in: fp32, tf32 (GPU) or bf16. \\[default: {_DEFAULT.precision}]",
        autocompletion=names(*PRECISIONS),
        rich_help_panel=_RUN,
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        parser=whole,
        metavar="N",
        help="Seeds and controls to train side by side: in processes on a CPU, as one program on a GPU. "
        "\\[default: what the cores hold; all on a GPU]",
        rich_help_panel=_RUN,
    ),
]
Compact = Annotated[
    bool | None,
    typer.Option(
        "--compact/--no-compact",
        help="Leave inputs, units and channels out of a training that pruned weights cut off; results differ by "
        f"rounding. \\[default: {'' if _DEFAULT.compact else 'no-'}compact]",
        rich_help_panel=_RUN,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        parser=whole,
        metavar="N",
        help="CPU threads of each training. \\[default: 1 for small networks, else all]",
        rich_help_panel=_RUN,
    ),
]
Out = Annotated[
    str | None,
    typer.Option(
        "--out",
        help="Folder for the results; must be new or empty. \\[default: runs/NETWORK-DATASET-TIME]",
        rich_help_panel=_RUN,
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print the results as one JSON object, for machines.", rich_help_panel=_RUN),
]
