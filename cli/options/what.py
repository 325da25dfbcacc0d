"""Which network and which data."""

from __future__ import annotations

from typing import Annotated

import typer

from lthfunc.data.catalog import DATA_DIR_VARIABLE, DATASETS, KINDS
from lthfunc.experiments.config import (
    Config,
)
from lthfunc.experiments.recipes import RECIPES
from lthfunc.models.catalog import ALIASES, ARCHS

from .parsing import names

_DEFAULT = Config()
_PANEL = "What"

Arch = Annotated[
    str | None,
    typer.Option(
        "--arch",
        help="Network: one of `lthfunc archs`, torchvision:NAME, timm:NAME, package.module:function or "
        f"path/to/file.py:name. \\[default: {_DEFAULT.arch}]",
        autocompletion=names(*ARCHS, *ALIASES),
        rich_help_panel=_PANEL,
    ),
]
ArchOption = Annotated[
    list[str] | None,
    typer.Option(
        "--arch-option",
        metavar="NAME=VALUE",
        help="An argument of the network, e.g. width=2; repeatable.",
        rich_help_panel=_PANEL,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        help="Start from these instead of random ones: a .safetensors file, or (torchvision:, timm:) the name of "
        "weights that are on the disk, e.g. DEFAULT. An output layer of another size is drawn anew.",
        rich_help_panel=_PANEL,
    ),
]
DataSet = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        help="Data set: one of `lthfunc datasets`, folder:PATH, npz:FILE, hf:NAME, text:FILE, planted, a .safetensors "
        f"file, package.module:function or path/to/file.py:name. \\[default: {_DEFAULT.dataset}]",
        autocompletion=names(*DATASETS, *(f"{kind}:" for kind in KINDS if kind != "planted"), "planted"),
        rich_help_panel=_PANEL,
    ),
]
DataSetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--dataset-option",
        metavar="NAME=VALUE",
        help="An argument of the data set, e.g. size=32, val=0.2, length=128; repeatable.",
        rich_help_panel=_PANEL,
    ),
]
SkipBroken = Annotated[
    bool | None,
    typer.Option("--skip-broken", help="Leave out images that cannot be read.", rich_help_panel=_PANEL),
]
DataDir = Annotated[
    str | None,
    typer.Option(
        "--data-dir",
        help="Folder (or address) that holds the data sets, or to download them to. "
        f"\\[default: ${DATA_DIR_VARIABLE}, or the user's cache]",
        rich_help_panel=_PANEL,
    ),
]
Recipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        help="A paper's settings by name (`lthfunc recipes`): "
        f"{', '.join(RECIPES)}. Other options and --config win over it.",
        autocompletion=names(*RECIPES),
        rich_help_panel=_PANEL,
    ),
]
ConfigFile = Annotated[
    str | None,
    typer.Option(
        "--config",
        help="TOML file with any of these options (layer_rate = {...}); options typed here win over it. Every run "
        "writes its own.",
        rich_help_panel=_PANEL,
    ),
]
