"""Options that are not settings of an experiment."""

from __future__ import annotations

from typing import Annotated

import typer

from lthfunc.catalog.recipes import RECIPES
from lthfunc.experiments.settings.setting import RUN, WHAT

Recipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        help=f"Settings of a paper (`lthfunc recipes`): {', '.join(RECIPES)}. Other options and --config override it.",
        autocompletion=RECIPES.complete,
        rich_help_panel=WHAT,
    ),
]
ConfigFile = Annotated[
    str | None,
    typer.Option(
        "--config",
        help="Read settings from this TOML file (layer_rate = {...}), or from a run's folder. Options typed here "
        "override it.",
        rich_help_panel=WHAT,
    ),
]
Out = Annotated[
    str | None,
    typer.Option(
        "--out",
        help="Folder for the results, or an address (s3://…). It must be new or empty. "
        "\\[default: runs/NETWORK-DATASET-TIME]",
        rich_help_panel=RUN,
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print the results as JSON.", rich_help_panel=RUN),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Allow settings from a file or a run to import code (package.module:function, file.py:name) and to "
        "connect to services (s3://…, hf:…, ray://…, W&B). Settings typed here are always allowed to.",
        rich_help_panel=RUN,
    ),
]
