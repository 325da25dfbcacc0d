"""How it runs, and what it leaves."""

from __future__ import annotations

from typing import Annotated

import typer

from lthfunc.experiments.config import (
    ENGINES,
    ON_NONFINITE,
    PRECISIONS,
    Config,
)

from .parsing import names, number, whole

_DEFAULT = Config()
_PANEL = "The run"

Seed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        parser=whole,
        metavar="N",
        help=f"Decides the initial weights and the order of the data. \\[default: {_DEFAULT.seed}]",
        rich_help_panel=_PANEL,
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
        rich_help_panel=_PANEL,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        help="auto (a GPU where there is one), cpu, cuda or cuda:N. \\[default: auto]",
        autocompletion=names("auto", "cpu", "cuda"),
        rich_help_panel=_PANEL,
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
        rich_help_panel=_PANEL,
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        help=f"What products are computed in: fp32, tf32 (GPU) or bf16. \\[default: {_DEFAULT.precision}]",
        autocompletion=names(*PRECISIONS),
        rich_help_panel=_PANEL,
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        parser=whole,
        metavar="N",
        help="Seeds and controls to train side by side: in threads or processes on a CPU, as one program on a GPU. "
        "\\[default: what the cores hold; on a GPU all that fit its memory]",
        rich_help_panel=_PANEL,
    ),
]
On = Annotated[
    str | None,
    typer.Option(
        "--on",
        metavar="WHERE",
        help="Where trainings run: local, ray (a cluster of this machine's cores), or ray://HOST:PORT; results don't "
        "change. \\[default: local]",
        autocompletion=names("local", "ray"),
        rich_help_panel=_PANEL,
    ),
]
GpuShare = Annotated[
    float | None,
    typer.Option(
        "--gpu-share",
        parser=number,
        metavar="X",
        help="With --on ray, how much of a GPU a training takes; 0.25 puts four on one. \\[default: 1]",
        rich_help_panel=_PANEL,
    ),
]
Compact = Annotated[
    bool | None,
    typer.Option(
        "--compact/--no-compact",
        help="Leave inputs, units and channels out of a training that pruned weights cut off; results differ by "
        f"rounding. \\[default: {'' if _DEFAULT.compact else 'no-'}compact]",
        rich_help_panel=_PANEL,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        parser=whole,
        metavar="N",
        help="CPU threads of each training, at most 128 or four a core. \\[default: 1 for small networks, else all]",
        rich_help_panel=_PANEL,
    ),
]
Out = Annotated[
    str | None,
    typer.Option(
        "--out",
        help="Folder for the results, or an address (s3://…); must be new or empty. "
        "\\[default: runs/NETWORK-DATASET-TIME]",
        rich_help_panel=_PANEL,
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print the results as one JSON object, for machines.", rich_help_panel=_PANEL),
]
CheckpointEvery = Annotated[
    str | None,
    typer.Option(
        "--checkpoint-every",
        metavar="N|Ns|never",
        help="Keep trainings under way every N steps, or every N seconds (30s), so that `lthfunc resume` goes on "
        f"within them; results don't change. \\[default: {_DEFAULT.checkpoint_every}]",
        rich_help_panel=_PANEL,
    ),
]
OnNonfinite = Annotated[
    str | None,
    typer.Option(
        "--on-nonfinite",
        help=f"A step whose loss or gradient is not finite: {' or '.join(ON_NONFINITE)} (it changes nothing, and the "
        f"next one follows). \\[default: {_DEFAULT.on_nonfinite}]",
        autocompletion=names(*ON_NONFINITE),
        rich_help_panel=_PANEL,
    ),
]
Energy = Annotated[
    bool | None,
    typer.Option(
        "--energy/--no-energy",
        help="Meter each training's energy with codecarbon, by epoch and apart from evaluation; on a CPU trainings "
        "then run one at a time. \\[default: no-energy]",
        rich_help_panel=_PANEL,
    ),
]
Country = Annotated[
    str | None,
    typer.Option(
        "--country",
        metavar="ABC",
        help="With --energy, whose electricity mix gives emissions: ISO 3166-1, three letters. "
        "\\[default: USA, and said so]",
        rich_help_panel=_PANEL,
    ),
]
TensorBoard = Annotated[
    bool | None,
    typer.Option(
        "--tensorboard/--no-tensorboard",
        help="Also write event files, into RUN/tensorboard. \\[default: no-tensorboard]",
        rich_help_panel=_PANEL,
    ),
]
Wandb = Annotated[
    bool | None,
    typer.Option(
        "--wandb/--no-wandb",
        help="Also tell Weights & Biases, as WANDB_MODE and WANDB_PROJECT say. \\[default: no-wandb]",
        rich_help_panel=_PANEL,
    ),
]
MLflow = Annotated[
    bool | None,
    typer.Option(
        "--mlflow/--no-mlflow",
        help="Also tell MLflow, at MLFLOW_TRACKING_URI or in RUN/mlflow.db. \\[default: no-mlflow]",
        rich_help_panel=_PANEL,
    ),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Import code (package.module:function, file.py:name) and connect to places (s3://…, hf:…, ray://…, W&B) "
        "that the settings of a file or a run name; what is typed here needs no trust.",
        rich_help_panel=_PANEL,
    ),
]
