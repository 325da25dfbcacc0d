"""Mistakes in a command line that Typer finds, in words that say what to type instead."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any


def words_of(error: Any) -> str:
    """The message of an error of Typer's parser."""
    command = "" if error.ctx is None else error.ctx.info_name
    if getattr(error, "option_name", None) and hasattr(error, "possibilities"):
        return _unknown_option(error)
    param = getattr(error, "param", None)
    if param is not None and getattr(param, "metavar", None) == "RUN" and "Missing" in error.format_message():
        return f"{error.format_message()} {_runs(command)}"
    extra = re.fullmatch(r"Got unexpected extra argument\S* \((.*)\)", error.format_message())
    return error.format_message() if extra is None else _extra(extra[1], error.ctx)


def _unknown_option(error: Any) -> str:
    """That an option is unknown, and the one that was meant, or the commands that have it."""
    from lthfunc.experiments.config import SETTINGS

    said = f"No such option: {error.option_name}"
    shown = {flag for each in error.ctx.command.params if not getattr(each, "hidden", False) for flag in each.opts}
    for setting in SETTINGS.values():
        if setting.option == error.option_name:
            *others, last = setting.commands
            return f"{said} (that is an option of {', '.join(others)}{' and ' if others else ''}{last})"
    near = [each for each in error.possibilities or () if each in shown]
    return f"{said}; did you mean {near[0]}?" if near else said


def _extra(words: str, context: Any) -> str:
    """That a word is no argument, and the option whose value it may be."""
    from lthfunc.catalog import data_sets, networks
    from lthfunc.catalog.recipes import RECIPES

    word = words.split()[0]
    plain = word.lower()
    values = {
        "--arch": plain in {*networks.NETWORKS, *networks.ALIASES},
        "--dataset": plain.replace("-", "") in data_sets.DATASETS,
        "--recipe": plain in RECIPES,
        "--config": Path(word).suffix == ".toml",
    }
    flags = {flag for each in context.command.params for flag in each.opts}
    meant = next((f"; did you mean {flag} {word}?" for flag, is_one in values.items() if is_one and flag in flags), "")
    return f"unexpected argument {word!r} of {context.info_name}{meant}"


def _runs(command: str) -> str:
    """Runs in the folder of runs that could be named: for resume, those that are unfinished."""
    from lthfunc.runs.unfinished import RUNS, runs_here

    found = runs_here(unfinished=command == "resume")
    if found:
        which = "Unfinished runs here" if command == "resume" else "The newest runs here"
        return f"{which}: {', '.join(shlex.quote(str(each)) for each in found)}"
    none = f" ({RUNS} has no unfinished run)" if command == "resume" else ""
    return f"Name a run's folder, e.g. lthfunc {command} {RUNS}/RUN{none}"
