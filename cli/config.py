"""``lthfunc config``: configuration files, checked and explained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lthfunc.experiments.config import Config

from .console import put


def config(
    file: Annotated[
        str | None, typer.Argument(metavar="[FILE]", help="A TOML file, or a run's folder. \\[default: all defaults]")
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of such files.")] = False,
) -> None:
    """Check a configuration file, and print it as TOML with the defaults of its network and data filled in."""
    if schema:
        import json

        from lthfunc.experiments.schema import json_schema

        print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
        return
    from lthfunc.experiments.resolve import resolved
    from lthfunc.runs.settings import read_config, to_toml

    found = Config()
    if file is not None:
        path = Path(file)
        found = read_config(path / "config.toml", run=path) if path.is_dir() else read_config(path)
    put(to_toml(resolved(found), "lthfunc prune --config THIS_FILE"), end="")
