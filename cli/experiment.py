"""``lthfunc prune``, ``lthfunc train`` and ``lthfunc resume``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lthfunc.errors import UserError
from lthfunc.experiments import recipes
from lthfunc.experiments.config import (
    SETTINGS,
    Config,
    check_alternatives,
    current_names,
    replaced_by,
    trainings_of,
    warn_of_former_names,
)
from lthfunc.experiments.resolve import resolved
from lthfunc.experiments.schema import from_mapping
from lthfunc.experiments.trust import check_trust
from lthfunc.printable import counted

from . import options as o
from .console import busy


@o.with_settings("prune")
def prune(
    sources: o.Sources,
    out: o.Out = None,
    layers: o.Layers = False,
    json: o.Json = False,
) -> None:
    """Find a winning ticket: a subnetwork that trains from its initial weights to the accuracy of the whole network.

    Each round trains the network, prunes the smallest weights, and rewinds the others to their initial values. The
    folder of results holds the winning ticket, its trained weights, the weights and masks (which weights remain) of
    every round, the metrics, and three pictures.
    """
    _start("prune", sources, out, o.Shown(json, layers))


@o.with_settings("train")
def train(
    sources: o.Sources,
    out: o.Out = None,
    json: o.Json = False,
) -> None:
    """Train the dense network, without pruning."""
    _start("train", sources, out, o.Shown(json))


@o.with_settings("resume")
def resume(
    run: Annotated[str, typer.Argument(help="The run's folder.")],
    given: o.Given,
    trust: o.Trust = False,
    layers: o.Layers = False,
    json: o.Json = False,
) -> None:
    """Resume an interrupted run; the results have the same bits as without the interruption.

    Trainings resume from their checkpoints; damaged ones are trained again. The options replace the run's own, since
    they change no result.
    """
    with busy("loading PyTorch"):
        from .running import resume_run
    resume_run(run, given, trust, shown=o.Shown(json, layers))


def _start(command: str, sources: o.Sources, out: str | None, shown: o.Shown) -> None:
    config = settings_of(command, sources)
    rounds = f", {counted(config.rounds, 'round')} of pruning" if config.rounds else ""
    what = f"{config.arch} on {config.dataset}{rounds}, {counted(trainings_of(config), 'training')}"
    with busy(f"{what}: loading PyTorch"):  # after all checks that don't need it
        from .running import new_run
    new_run(config, command, out, shown=shown)


def settings_of(command: str, sources: o.Sources) -> Config:
    """The settings of all sources, checked and completed. Raises UserError."""
    return resolved(merged(command, sources))


def merged(command: str, sources: o.Sources) -> Config:
    """The settings of all sources; options take precedence. Raises UserError."""
    given, recipe, path, trust = sources
    check_alternatives(given)
    from_file: dict[str, Any] = {}
    if path is not None:
        from lthfunc.runs.toml_files import read_toml

        folder = Path(path)
        file, run = (folder / "config.toml", folder) if folder.is_dir() else (path, None)
        from_file = read_toml(file, run)
        if run is None:  # nobody should edit a run's own file
            warn_of_former_names(from_file)
        from_file = current_names(from_file)
        check_trust(from_file, f"--config: {path!r}", trusted=trust, typed=given)
        # A length on the command line replaces the file's, in epochs or steps.
        replaced = replaced_by(given)
        from_file = {name: value for name, value in from_file.items() if name not in replaced}
    if recipe is not None:
        from_file = {**recipes.left_of(recipe, {**from_file, **given}), **from_file}
    if command in ("train", "methods"):
        # A file written by `prune` can be used as well; its pruning does not apply.
        pruning = {name for name, each in SETTINGS.items() if {"prune", command} & {*each.commands} == {"prune"}}
        from_file = {name: value for name, value in from_file.items() if name not in pruning}
    if command == "train":
        from_file["rounds"] = 0
    try:
        return from_mapping(_with_teacher({**from_file, **given}, trust=trust))
    except UserError as error:
        raise UserError(f"{error} [in {path}]") if path else error from error


def _with_teacher(values: dict[str, Any], *, trust: bool) -> dict[str, Any]:
    """Settings whose teacher, if it is a run, is a file of it. Raises UserError."""
    if "teacher" not in values:
        return values
    from lthfunc.runs.teachers import with_file_of_teacher

    return with_file_of_teacher(values, trusted=trust)
