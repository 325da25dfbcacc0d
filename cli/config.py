"""``lthfunc config``: configuration files, checked and explained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from . import options as o
from .console import put, put_json, screen
from .experiment import merged

if TYPE_CHECKING:
    from lthfunc.experiments.config import Decision


@o.with_settings("prune")
def config(
    file: Annotated[
        str | None, typer.Argument(help="A TOML file, or a run's folder. \\[default: all defaults]")
    ] = None,
    *,
    given: o.Given,
    recipe: o.Recipe = None,
    trust: o.Trust = False,
    schema: Annotated[bool, o.option("--schema", "Print the JSON Schema of such files.")] = False,
    explain: Annotated[
        bool,
        o.option("--explain", "Load the data, then print what was decided for settings that are left open, and why."),
    ] = False,
    json: o.Json = False,
) -> None:
    """Check settings, and print them as TOML with the defaults of the network and data set filled in."""
    if schema:
        import json as writer

        from lthfunc.experiments.schema import json_schema

        print(writer.dumps(json_schema(), indent=2, ensure_ascii=False))
        return
    from lthfunc.experiments.config import to_mapping
    from lthfunc.experiments.resolve import resolve

    settings, decisions = resolve(merged("prune", o.Sources(given, recipe, file, trust or not explain)))
    if explain:
        from lthfunc.experiments.plan import prepare  # torch is imported here

        from .decoding import decoding

        with decoding("preparing the run") as observe:
            decisions += prepare(settings, observe).decisions
        if json:
            names = ("setting", "value", "reason")
            put_json([dict(zip(names, each, strict=False)) for each in decisions])
        else:
            _show(decisions)
    elif json:
        put_json(to_mapping(settings))
    else:
        from lthfunc.runs.toml_files import to_toml

        put(to_toml(settings, "lthfunc prune --config THIS_FILE"), end="")


def _show(decisions: list[Decision]) -> None:
    from rich.table import Table

    table = Table("setting", "value", "reason", header_style="bold", box=None, pad_edge=False)
    for each in decisions:
        value = f"{each.value:,}" if isinstance(each.value, int) and not isinstance(each.value, bool) else each.value
        table.add_row(each.setting, f"{value:.4g}" if isinstance(value, float) else str(value), each.reason)
    screen().print(table, highlight=False, markup=False)
