"""The results that commands print at the end."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lthfunc.experiments.config import to_mapping
from lthfunc.experiments.records import Row, Spread, summarize
from lthfunc.experiments.trust import places_in
from lthfunc.experiments.winner import Candidate
from lthfunc.reports.tables import has_layers, layer_table, result_table
from lthfunc.reports.verdict import collapse, normalisation_hint, verdict
from lthfunc.runs import safe_files
from lthfunc.runs.folder import TRAIN, TRANSFER, Run
from lthfunc.runs.ticket_files import LAST, OLD_TICKET, WINNING, WINNING_TRAINED

from .console import put, put_words, screen
from .remote_runs import named

#: Why accuracies of trained weights differ from those of a run's table.
AFTER_TRAINING = (
    "trained weights are those after the last step; the run's table is about those of the early-stopping step"
)
#: A command, and what it does.
Suggestion = tuple[str, str]


def show_tables(rows: Sequence[Row], *, layers: bool = False) -> None:
    """Print the result table, with per-layer densities if they fit or are wanted."""
    console = screen()
    console.print(result_table(rows, console.width))
    if layers and not has_layers(rows, console.width):
        console.print()
        console.print(layer_table(rows, console.width))


def show_results(run: Run, folder: Path, *, layers: bool) -> None:
    """Print tables, which round won, the files, and what to do next."""
    rows = summarize(run.records)
    put()
    show_tables(rows, layers=layers)
    put_words(legend(rows), style="dim")
    put()
    show_outcome(run, folder, rows)
    for line in file_lines(run, folder):
        put_words(line)
    show_suggestions(suggestions(run, folder))


def legend(rows: Sequence[Row]) -> str:
    """The words of the result table, each in half a line."""
    words = ["density: share of the weights that remain", "early stop: the step with the least validation loss, "
             "whose network is measured"]  # fmt: skip
    if max(row.replicates for row in rows) > 1:
        words.append("±: standard deviation over the seeds")
    return "; ".join(words)


def show_outcome(run: Run, folder: Path, rows: Sequence[Row]) -> None:
    """Print which round won, and why."""
    hint = normalisation_hint(run.choice) if run.config.from_trained else ""
    for line in (verdict(run.choice), hint, collapse(rows)):
        if line:
            put_words(line)
            put()


def file_lines(run: Run, folder: Path) -> Iterator[str]:
    """A line per file of a finished run, with the network that it has."""
    yield f"Files in {named(folder)}:"
    last, won = max(item["round"] for item in run.records), run.choice.winning_round
    files = [(LAST, f"last round: round {last} after training")] if last else []
    if won is not None:
        files[:0] = [
            (WINNING, f"winning ticket: round {won} before training"),
            (WINNING_TRAINED, f"trained ticket: round {won} after training"),
        ]
    missing = [name for name, _ in files if safe_files.status(folder, folder / name) is None]
    files = [each for each in files if each[0] not in missing]
    if safe_files.status(folder, folder / OLD_TICKET) is not None:
        files.append((OLD_TICKET, f"round {last} before training (older version)"))
    if run.config.replicates > 1 and files:
        files.append(("seed*/", "the same of each seed; above: the first's"))
    files += [(name, "picture") for name in safe_files.names(folder, folder) if name.endswith(".png")]
    width = max((len(name) for name, _ in files), default=0)
    yield from (f"  {name:{width}}  {what}" for name, what in files)
    if missing:
        yield f"Not written: {', '.join(missing)}; to write them: lthfunc resume {shlex.quote(named(folder))}"


def suggestions(run: Run, folder: Path) -> list[Suggestion]:
    """Commands that lead on from a finished run, with its path filled in."""
    config, about, path = run.config, run.about, shlex.quote(named(folder))
    trust = " --trust" if places_in(to_mapping(config)) else ""
    found = [(f"lthfunc report {path}", "one page with every picture, for any browser")]
    again = f"lthfunc prune --config {path}{trust}"
    lacking = [] if config.replicates > 1 else ["--replicates 3"]
    if "reinit" not in config.control:
        lacking += [f"--control {name}" for name in (*config.control, "reinit")]
    if "://" in path:
        pass  # settings are read from local files only
    elif about["command"] == TRAIN or not config.rounds:
        found.append((f"{again} --rounds 5", "find a winning ticket of this network"))
    elif about["command"] == TRANSFER:
        found.append((again, "find tickets on this data set itself, to compare with"))
    elif "branched" in about:
        source = shlex.quote(str(about["branched"]["run"]))
        found.append((f"lthfunc compare {source} {path}", "is the branch better than the run that it started from?"))
    elif lacking:
        seeds = ["with three seeds"] if config.replicates == 1 else []
        control = ["with the tickets' masks on newly drawn weights"] if "reinit" not in config.control else []
        found.append((f"{again} {' '.join(lacking)}", f"the same {' and '.join(seeds + control)}, to be certain"))
    if config.rounds:
        found.append((f"lthfunc specialize {path}{trust}", "the ticket's fastest program on this machine"))
        if "://" not in path:
            found.append((f"lthfunc export {path} --to state-dict{trust}", "its weights for plain PyTorch; or ONNX, …"))
    return found


def show_suggestions(found: Sequence[Suggestion]) -> None:
    """Print commands, each on a line of its own that can be copied."""
    put("\nNext:")
    for command, what in found:
        put(f"  {command}")
        put_words(what, style="dim", indent=6)


def as_json(run: Run, folder: Path) -> dict[str, Any]:
    """The results as plain values. Accuracies are in [0, 1]."""
    choice = run.choice
    found = choice.winner or choice.best
    return {
        "run": named(folder),
        "config": to_mapping(run.config),
        "rounds": [_row(row) for row in summarize(run.records)],
        "winning_round": choice.winning_round,
        "against_dense": None if found is None else {"round": found.row.round, **_without_row(found)},
        "last_round": max((item["round"] for item in run.records), default=None),
    }


def _without_row(found: Candidate) -> dict[str, Any]:
    return {name: value for name, value in found._asdict().items() if name != "row"}


def _row(row: Row) -> dict[str, Any]:
    """A row as plain values, without what was not measured."""
    plain = {name: value._asdict() if isinstance(value, Spread) else value for name, value in row._asdict().items()}
    return {name: value for name, value in plain.items() if value is not None and name != "scale"}
