"""The help of a command on a narrow screen: what an option does stands below its name, and nothing is cut."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.padding import Padding
from rich.text import Text

from .console import page

#: Columns below which Typer's tables cut long words off.
_LEAST = 80


def fit_narrow(command: Any) -> None:
    """Let a command show its help without tables where the screen is too narrow for them."""
    wide = command.format_help

    def format_help(context: Any, formatter: Any) -> None:
        console = page()
        if console.width >= _LEAST:
            wide(context, formatter)
            return
        for indent, text in _parts(command, context):
            text.overflow = "fold"
            console.print(Padding(text, (0, 0, 0, indent)))

    command.format_help = format_help


def _parts(command: Any, context: Any) -> Iterator[tuple[int, Text]]:
    """(indent, text) of each line or paragraph."""
    yield 0, Text(command.get_usage(context), "yellow")
    for paragraph in (command.help or "").split("\n\n"):
        yield 0, Text()
        for line in paragraph.splitlines():
            yield 0, Text.from_markup(line)
    panels: dict[str, list[Any]] = {}
    for each in command.get_params(context):
        if not getattr(each, "hidden", False):
            other = "Arguments" if each.param_type_name == "argument" else "Options"
            panels.setdefault(getattr(each, "rich_help_panel", None) or other, []).append(each)
    for panel, params in panels.items():
        yield 0, Text(f"\n{panel}", "dim")
        for each in params:
            yield from _about(each, context)
    for number, (name, each) in enumerate(getattr(command, "commands", {}).items()):
        yield 0, Text("" if number else "\nCommands", "dim")
        yield 0, Text(name, "bold cyan")
        yield 4, Text.from_markup(each.get_short_help_str(10_000))


def _about(param: Any, context: Any) -> Iterator[tuple[int, Text]]:
    """An option's or argument's names and placeholder, and below them what it does."""
    plain, param.help = param.help, ""
    try:
        names, more = param.get_help_record(context)  # its default, or that it is required
    finally:
        param.help = plain
    yield 0, Text(names, "bold cyan")
    yield 4, Text.assemble(Text.from_markup(plain or ""), " " if plain and more else "", (more, "dim"))
