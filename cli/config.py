"""``lthfunc config``: configuration files, checked and explained."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from lthfunc.experiments.config import Config

from .console import put
from .experiment import prune
from .methods import methods


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

        print(json.dumps(json_schema(_explanations()), indent=2, ensure_ascii=False))
        return
    from lthfunc.experiments.resolve import resolved
    from lthfunc.runs.settings import read_config, to_toml

    found = Config()
    if file is not None:
        path = Path(file)
        found = read_config(path / "config.toml", run=path) if path.is_dir() else read_config(path)
    put(to_toml(resolved(found), "lthfunc prune --config THIS_FILE"), end="")


def _explanations() -> dict[str, str]:
    """What --help says of each setting."""
    found = {}
    parameters = {
        **inspect.signature(methods, eval_str=True).parameters,
        **inspect.signature(prune, eval_str=True).parameters,
    }
    for name, parameter in parameters.items():
        option: Any = next((part for part in get_args(parameter.annotation) if hasattr(part, "help")), None)
        if option is not None and option.help:
            found[name] = " ".join(option.help.partition("\\[default")[0].split())
    return found
