"""Parts of pages that are made when the site is built: commands by Typer, names and examples by the library.

They replace lines like ``<!-- commands of lthfunc -->``, ``<!-- names of PACKAGE, first MODULE … -->``,
``<!-- module of MODULE -->`` and ``<!-- cells of SCRIPT -->``.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import typer
from lthfunc_cli.commands import COMMANDS
from lthfunc_cli.main import app as cli
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer

import lthfunc as lf

#: Pages whose tables name functions, as links to the reference.
_LINKED = ("how-to/python", "how-to/methods")
_MADE = re.compile(r"^<!-- (\w+) of ([^\s,]+)(?:, first )?(.*) -->$", re.MULTILINE)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", fill_in)
    app.connect("env-get-outdated", made)
    return {"parallel_read_safe": True}


def made(app: Sphinx, env: BuildEnvironment, *changes: set[str]) -> list[str]:
    """The pages to read again in every build: those with parts that are made."""
    return [page for page in env.found_docs if _MADE.search(Path(env.doc2path(page)).read_text(encoding="utf-8"))]


def fill_in(app: Sphinx, page: str, source: list[str]) -> None:
    """Put what is made into a page's text."""
    makers = {"commands": commands, "names": names, "module": module, "cells": cells}
    before, *rest = _MADE.split(source[0])
    for maker, subject, first, after in zip(rest[::4], rest[1::4], rest[2::4], rest[3::4], strict=True):
        before += "\n".join(makers[maker](subject, *first.split())) + after
    source[0] = _linked(before) if page in _LINKED else before


def names(package: str, *first: str) -> Iterator[str]:
    """The public names that lie in a package, module by module, with their docstrings; some modules first."""
    for exporter in (lf, lf.data, lf.models):
        homes = _homes(exporter)
        yield f"```{{py:currentmodule}} {exporter.__name__}\n```\n"
        inside = dict.fromkeys(home for home in homes.values() if f"{home}.".startswith(f"{package}."))
        for home in sorted(inside, key=lambda home: [*first, home.rpartition(".")[2]].index(home.rpartition(".")[2])):
            yield f"## {home.rpartition('.')[2].replace('_', ' ').capitalize()}\n"
            yield _markdown(inspect.getdoc(importlib.import_module(home)) or "")
            yield from (_described(name, getattr(exporter, name), home) for name in homes if homes[name] == home)


def module(home: str) -> Iterator[str]:
    """The public names of a module that no package exports."""
    found = importlib.import_module(home)
    yield f"```{{py:currentmodule}} {home}\n```\n\n{_markdown(inspect.getdoc(found))}"
    for name, each in vars(found).items():
        if getattr(each, "__module__", None) == home and not name.startswith("_"):
            yield _described(name, each, home)


def _homes(package: ModuleType) -> dict[str, str]:
    """name -> the module that it lies in, of all names that a package exports but for its submodules."""
    imports = [node for node in ast.walk(ast.parse(inspect.getsource(package))) if isinstance(node, ast.ImportFrom)]
    found = {alias.name: str(node.module) for node in imports for alias in node.names}
    homes = {name: found.get(name, "lthfunc.models.factory") for name in package.__all__}
    return {name: home for name, home in homes.items() if home != package.__name__}


def _described(name: str, found: Any, home: str) -> str:
    """A directive for a function, a class with its methods, or an alias of a type."""
    if inspect.isfunction(found):
        return _directive("function", f"{name}{_signature(found)}", _markdown(inspect.getdoc(found)))
    if not inspect.isclass(found):
        analyzer = ModuleAnalyzer.for_module(home)
        value = re.search(rf"^{name} = (.+)$", analyzer.code, re.MULTILINE)
        assert value is not None, name
        comment = " ".join(analyzer.find_attr_docs().get(("", name), []))
        return _directive("type", name, f"`{value[1]}`\n\n{_markdown(comment)}")
    methods = [
        _directive("method", f"{key}{_signature(member)}".replace("(self, ", "(").replace("(self)", "()"),
                   _markdown(inspect.getdoc(member)), depth=6)
        for key, member in vars(found).items()
        if inspect.isfunction(member) and not key.startswith("_") and member.__doc__
    ]  # fmt: skip
    kind = "exception" if issubclass(found, Exception) else "class"
    arguments = "" if kind == "exception" else _signature(found).partition(" -> ")[0]
    return _directive(kind, f"{name}{arguments}", "\n".join([_markdown(inspect.getdoc(found)), *methods]))


def _signature(function: Any) -> str:
    """As it is written, without quotes around annotations."""
    return re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(inspect.signature(function)))


def _directive(kind: str, head: str, text: str, depth: int = 8) -> str:
    fence = "`" * depth
    return f"{fence}{{py:{kind}}} {head}\n\n{text}\n{fence}\n"


def _markdown(docstring: str | None) -> str:
    """A docstring with its examples as code, and public names as links."""
    parts = re.split(r"^(>>> .*(?:\n.+)*)", docstring or "", flags=re.MULTILINE)
    return "".join(f"```pycon\n{part}\n```" if at % 2 else _linked(part) for at, part in enumerate(parts)) + "\n"


def _linked(text: str) -> str:
    def link(found: re.Match[str]) -> str:
        return f"{{py:obj}}`~lthfunc.{found[1]}`" if found[1] in lf.__all__ else found[0]

    return re.sub(r"(?<!`)`([A-Za-z]\w*)`(?!`)", link, text)


def cells(script: str) -> Iterator[str]:
    """A script in the format of notebooks: its text, and its code."""
    text = Path(__file__).parents[1].joinpath(script).read_text(encoding="utf-8")
    for cell in re.split(r"^# %%", text, flags=re.MULTILINE)[1:]:
        head, _, body = cell.partition("\n")
        code = f"```python\n{body.strip()}\n```"
        yield (re.sub(r"^# ?", "", body, flags=re.MULTILINE) if "markdown" in head else code) + "\n"


def commands(program: str) -> Iterator[str]:
    """All commands: a list by group, and each with its options by panel."""
    yield "| group | command | what it does |\n|---|---|---|"
    for title, lines in COMMANDS.items():
        for at, (name, about) in enumerate(lines.items()):
            yield f"| {'' if at else title} | [`{name}`](#{program}-{name}) | {about.line} |"
    yield ""
    group = typer.main.get_command(cli)
    yield from _commands(group, group.make_context(program, [], resilient_parsing=True), program)


def _commands(group: Any, above: Any, words: str) -> Iterator[str]:
    for name, command in group.commands.items():
        if command.hidden:
            continue
        context = command.make_context(name, [], parent=above, resilient_parsing=True)
        command = context.command  # with its parameters
        text, _, examples = (command.help or "").partition("Examples:\n\n")
        yield f"## {words} {name}\n\n{inspect.cleandoc(text)}\n"
        yield f"```sh\n{examples.replace('$ ', '')}\n```\n" if examples else ""
        yield f"```none\n{command.get_usage(context).removeprefix('Usage: ')}\n```\n"
        panels: dict[str, list[str]] = {}
        for each in command.params:
            if record := each.get_help_record(context):
                option, about = (part.replace("\\[", "[").replace("|", "\\|") for part in record)
                panel = each.rich_help_panel if isinstance(each.rich_help_panel, str) else ""
                row = f"| `{re.sub(' <.*>', '', option)}` | {_plain(about)} |"
                panels.setdefault(panel, []).append(row)
        for panel, rows in panels.items():
            yield "\n".join([f"| {panel} | |", "|---|---|", *rows, ""])
        if hasattr(command, "commands"):
            yield from _commands(command, context, f"{words} {name}")


def _plain(text: str) -> str:
    """A line of help, whose stars and brackets mean themselves."""
    return re.sub(r"([*<_])", r"\\\1", text)
