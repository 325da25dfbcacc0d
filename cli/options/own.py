"""Options that are no settings of an experiment."""

from __future__ import annotations

from typing import Annotated

import typer

from lthfunc.catalog.recipes import RECIPES
from lthfunc.experiments.settings.setting import RUN, WHAT

Recipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        help="A paper's settings by name (`lthfunc recipes`): "
        f"{', '.join(RECIPES)}. Other options and --config win over it.",
        autocompletion=RECIPES.complete,
        rich_help_panel=WHAT,
    ),
]
ConfigFile = Annotated[
    str | None,
    typer.Option(
        "--config",
        help="Read settings from this TOML file (layer_rate = {...}), or from a run's folder. Options typed here win "
        "over it.",
        rich_help_panel=WHAT,
    ),
]
Out = Annotated[
    str | None,
    typer.Option(
        "--out",
        help="Folder for the results, or an address (s3://…); must be new or empty. "
        "\\[default: runs/NETWORK-DATASET-TIME]",
        rich_help_panel=RUN,
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print the results as one JSON object, for machines.", rich_help_panel=RUN),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Import code (package.module:function, file.py:name) and connect to places (s3://…, hf:…, ray://…, W&B) "
        "that the settings of a file or a run name; what is typed here needs no trust.",
        rich_help_panel=RUN,
    ),
]
