"""``lthfunc info``: the contents of a run folder or a ticket file."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lthfunc.errors import UserError
from lthfunc.printable import counted

from . import options as o
from .console import printable, put, put_json, put_words, screen

if TYPE_CHECKING:
    from lthfunc.experiments.config import Config


@o.with_settings("info")
def info(
    run: Annotated[str, typer.Argument(help="A run's folder, or one of its .safetensors files.")],
    given: o.Given,
    classes: Annotated[
        bool,
        typer.Option(
            "--classes", help="Also measure the accuracy of each class on the validation split, dense and ticket."
        ),
    ] = False,
    layers: o.Layers = False,
    trust: o.Trust = False,
    json: o.Json = False,
) -> None:
    """Show a run's settings and results, or the contents of a ticket file."""
    path = Path(run)
    if classes and not path.is_dir():
        raise UserError(f"--classes: requires a run's folder, which {run} is not")
    if path.is_file():
        _show_file(path, as_json=json)
    elif path.is_dir():
        _show_run(path, wants_json=json, layers=layers)
        if classes and not json:
            _show_classes(path, given.get("data_dir"), trust)
    else:
        from lthfunc.runs.folder import METRICS
        from lthfunc.runs.names_of_runs import like_run

        raise UserError(f"{run}: no such folder or file{like_run(path, METRICS)}")


def _show_run(folder: Path, *, wants_json: bool, layers: bool) -> None:
    from lthfunc.experiments.config import trainings_of
    from lthfunc.experiments.records import summarize
    from lthfunc.runs.environment import machine_in_words
    from lthfunc.runs.folder import whole_run
    from lthfunc.runs.integrity import sum_problems
    from lthfunc.runs.lock import at_work
    from lthfunc.runs.unfinished import is_finished

    from .remote_runs import named
    from .results import as_json, file_lines, show_outcome, show_tables

    run = whole_run(folder)
    about, config, records = run.about, run.config, run.records
    rows = summarize(records)
    wanted = trainings_of(config)
    if wants_json:
        put_json({**as_json(run, folder), "machine": about["machine"], "finished": is_finished(run)})
        return
    put(f"{folder}: lthfunc {about['command']}, {len(records)} of {counted(wanted, 'training')} finished")
    where, versions = machine_in_words(about["machine"])
    put_words(f"on {where}; {versions}")
    chosen, decided = _changed(config)
    put_words(_settings(chosen))
    everything = f"all settings: lthfunc config {shlex.quote(named(folder))}"
    put_words(f"chosen at its start: {_settings(decided)}; {everything}", style="dim")
    if rows:
        put()
        show_tables(rows, layers=layers)
        put()
        show_outcome(run, folder, rows)
        for line in file_lines(run, folder) if is_finished(run) else ():
            put_words(line)
    for problem in sum_problems(folder, run, sizes=True):
        put(f"damaged: {problem}; to see what remains: lthfunc verify {shlex.quote(str(folder))}")
    if len(records) < wanted:
        on = shlex.quote(str(folder))
        put(f"a process is working on it: lthfunc watch {on}" if at_work(folder)
            else f"unfinished; resume with: lthfunc resume {on}")  # fmt: skip


def _show_classes(folder: Path, data_dir: str | None, trust: bool) -> None:
    """The accuracy per class of the dense network and the winning ticket (or the last round), with trained weights."""
    from lthfunc.reports.classes import class_rows, per_class
    from lthfunc.runs.tickets import tickets_of_run

    from .results import AFTER_TRAINING

    dense, found = tickets_of_run(folder, [0, None], None, data_dir, trusted=trust)
    networks = {"dense": dense.ticket} | ({f"round {found.number}": found.ticket} if found.number else {})
    put()
    put(found.words)
    put_words(AFTER_TRAINING, style="dim")
    screen().print(class_rows(per_class(dense.model, networks, dense.data)))


def _show_file(path: Path, *, as_json: bool) -> None:
    from torch import Tensor

    from lthfunc.trees.files import load_tree
    from lthfunc.trees.ops import count, layer_counts

    tree, metadata = load_tree(path)
    masks, params = (part if isinstance(part := tree.get(name), dict) else {} for name in ("masks", "params"))
    if not all(isinstance(leaf, Tensor) for leaf in (*masks.values(), *params.values())):
        raise UserError(f"{path}: has trees other than params and masks")
    layers = {name: layer._asdict() for name, layer in layer_counts(masks).items()}
    shapes = {name: list(leaf.shape) for name, leaf in params.items()}
    if as_json:
        put_json({"file": str(path), "metadata": metadata, "masks": layers, "params": shapes})
        return
    put(f"{path}: " + ", ".join(f"{name} {value}" for name, value in metadata.items() if name != "config"))
    put_words(_settings(_changed_in_file(metadata.get("config"))))
    if masks:
        whole = count(masks)
        put(f"{whole.kept:,} of {whole.total:,} weights remain ({100 * whole.density:.2f} %)")
    for name in dict.fromkeys([*shapes, *layers]):
        shape = "×".join(map(str, shapes[name])) if name in shapes else ""
        layer = layers.get(name)
        kept = f"  {layer['kept']:,} of {layer['total']:,} remain" if layer else ""
        put(f"  {name}  {shape}{kept}")


def _changed(config: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    """(network, data set and the settings that differ from their defaults, those that were open until it began)."""
    from lthfunc.experiments.config import SETTINGS, to_mapping
    from lthfunc.experiments.resolve import resolved
    from lthfunc.experiments.schema import from_mapping

    values, named = to_mapping(config), ("arch", "dataset")
    defaults = to_mapping(resolved(from_mapping({name: values[name] for name in named})))
    decided = {name: value for name, value in values.items() if SETTINGS[name].decided}
    changed = {
        name: value
        for name, value in values.items()
        if name in named or (name not in decided and value != defaults.get(name))
    }
    return changed, decided


def _changed_in_file(config: Any) -> dict[str, Any]:
    """The settings in a file's header that differ from their defaults; all of them if they are not this version's."""
    from lthfunc.experiments.schema import from_mapping

    if not isinstance(config, dict):
        return {}
    try:
        return _changed(from_mapping(config))[0]
    except UserError:
        return config


def _settings(config: dict[str, Any]) -> str:
    """Settings in one line, without empty ones."""
    return printable("  ".join(f"{name}={value}" for name, value in config.items() if value not in ([], {})))
