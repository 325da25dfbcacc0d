"""A run's folder: where its files are, how it is created, and what of it is finished (docs/reference/run-format.md).

    metrics.jsonl                     a description of the run, then a line per finished training
    config.toml                       the settings that reproduce it
    environment.jsonl                 a line per process that worked on it
    winning_ticket.safetensors, …     see `ticket_files.py`; once the run has ended (rounds > 0)
    seed0/anchor.safetensors          what pruned networks are rewound to
    seed0/round01/params.safetensors  params and buffers at the end of the training
    seed0/round01/masks.safetensors   its masks
    seed0/round01/initial.safetensors  what it was trained from, unless the masked weights of the anchor
    seed0/round01/manifest.json       the checksums of these files
    seed0/round01-reinit/…            a control
    seed0/round02/checkpoint-….safetensors   an unfinished training

A training counts once its line is in metrics.jsonl; its files are written before, each atomically.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lthfunc.errors import DamagedError, UnavailableError, UserError, invalid
from lthfunc.experiments.config import FREE, Config, to_mapping
from lthfunc.experiments.iterative import TICKET
from lthfunc.experiments.records import Record
from lthfunc.experiments.resolve import resolved
from lthfunc.experiments.schema import from_mapping
from lthfunc.experiments.winner import Choice, choose
from lthfunc.runs import safe_files
from lthfunc.runs.environment import environment, machine
from lthfunc.runs.json_lines import append_lines, line_of, scan_lines
from lthfunc.runs.line_schemas import Header, line_problem, training_problem
from lthfunc.runs.lock import is_unused
from lthfunc.runs.names_of_runs import like_run
from lthfunc.runs.toml_files import read_config, to_toml
from lthfunc.trees.types import Dataset

#: Format of these files, and the oldest that is read, which has `ticket.safetensors`, the last round's masks on its
#: initial weights, instead of the files of `ticket_files.py`. Up to format 3, the winning ticket was chosen without
#: allowing for noise. From format 5 on, a run may begin with round 1, and masks may change in a training.
FORMAT, OLDEST = 5, 2
_WITHOUT_NOISE = 3
CONFIG = "config.toml"
METRICS = "metrics.jsonl"
ENVIRONMENT = "environment.jsonl"
#: How far a run is, while a process works on it.
PROGRESS = ".progress.json"
ANCHOR = "anchor.safetensors"
PARAMS = "params.safetensors"
MASKS = "masks.safetensors"
INITIAL = "initial.safetensors"
#: In a pruned round's metadata, from format 3 on: the file with the weights that it was trained from.
FIRST = "initial"
PRUNE = "prune"
TRAIN = "train"
TRANSFER = "transfer"

#: (seed, round, variant): identifies a training within its run.
Name = tuple[int, int, str]


class Run(NamedTuple):
    """A run as read from its folder. format: of its files; about: its description.

    begun: the settings that it began with, resolved; config: those of the settings' file, where that is intact.
    damaged: the numbers of damaged lines, with the reasons; settings: what is wrong with the settings' file, or None.
    """

    format: int
    about: dict[str, Any]
    begun: Config
    config: Config
    records: list[Record]
    damaged: dict[int, str]
    settings: str | None

    @property
    def damage(self) -> list[str]:
        """The problems, one line each."""
        lines = [f"{METRICS}: line {number} is damaged: {reason}" for number, reason in self.damaged.items()]
        return lines if self.settings is None else [*lines, f"{CONFIG}: {self.settings}"]

    def continued(self, changed: Mapping[str, Any] = {}) -> Config:
        """The settings to continue with, resolved; changed: some of them. Raises UserError."""
        values, known = {**to_mapping(self.config), **changed}, to_mapping(self.begun)
        same = all(known.get(name) == values.get(name) for name in {*values, *FREE})
        return self.begun if same else resolved(from_mapping(values))

    @property
    def choice(self) -> Choice:
        """The winning ticket, by the rule of the run's format."""
        examples: int | None = (self.about.get("data") or {}).get("val")
        return choose(self.records, examples if self.format > _WITHOUT_NOISE else None)


def check_free(folder: Path) -> None:
    """Raise UnavailableError if a run can't be written there: another run, other files, or no permission."""
    if folder.exists() and not folder.is_dir():
        raise _not_there(folder, "a folder, not a file")
    if any(safe_files.status(folder, folder / name) is not None for name in (CONFIG, METRICS)):
        raise UnavailableError(
            f"--out: {str(folder)!r} holds another run; name another folder, or resume it with: lthfunc resume "
            f"{shlex.quote(str(folder))}"
        )
    if not is_unused(folder):
        raise _not_there(folder, "a new or empty folder; this one holds files")
    parent = folder
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise _not_there(folder, f"a folder that can be made; {str(parent)!r} cannot be written to")


def _not_there(folder: Path, expected: str) -> UnavailableError:
    return UnavailableError(str(invalid("--out", str(folder), expected)))


def create(
    folder: Path,
    config: Config,
    command: str,
    source: Path | None = None,
    *,
    branched: tuple[Path, int] | None = None,
    data: Dataset | None = None,
) -> None:
    """Start a run in an existing folder, with the first line of its metrics.

    source: the run whose tickets it trains. branched: (the run that its first rounds are from, the last one).
    """
    about = {
        "kind": "run",
        "format": FORMAT,
        "command": command,
        **({} if source is None else {"source": str(source.resolve())}),
        **({} if branched is None else {"branched": {"run": str(branched[0].resolve()), "round": branched[1]}}),
        "machine": machine(config.device, config.threads),
        **({} if data is None else {"data": data_facts(data)}),
        "config": to_mapping(config),
    }
    safe_files.write(folder, folder / METRICS, (line_of(about) + "\n").encode())
    write_config(folder, config, about)
    append_lines(folder / ENVIRONMENT, [environment("begin", config.device, config.threads)])


def write_config(folder: Path, config: Config, about: dict[str, Any]) -> None:
    """Write the settings. about: the run's first line."""
    source = about.get("source")
    made_by = f"lthfunc {about['command']} " + ("--config THIS_FILE" if source is None else f"of {source}")
    safe_files.write(folder, folder / CONFIG, to_toml(config, made_by).encode())


def data_facts(data: Dataset) -> dict[str, Any]:
    """Facts about a data set: sizes of its splits, shape of an input, normalisation."""
    return {
        "name": data.name,
        "train": data.examples,
        "val": len(data.val.x),
        "test": len(data.test.x),
        "shape": list(data.shape),
        "classes": data.classes,
        "scale": None if data.scale is None else data.scale._asdict(),
    }


def training_folder(folder: Path, seed: int, number: int, variant: str) -> Path:
    """The folder of one training."""
    suffix = "" if variant == TICKET else f"-{variant}"
    return folder / f"seed{seed}" / f"round{number:02d}{suffix}"


def make_training_folder(place: Path) -> None:
    """Make the folder of a training. The run's must exist: a deleted run doesn't come back in part."""
    safe_files.make(run_of(place), place)


def training_folders(folder: Path) -> list[Path]:
    """The folders of all trainings with any file, finished or not; links are ignored."""
    return [
        path
        for path, about in safe_files.entries(folder, folder)
        if stat.S_ISDIR(about.st_mode) and re.fullmatch(r"seed\d+/round\d+[^/]*", path.relative_to(folder).as_posix())
    ]


def run_of(place: Path) -> Path:
    """The folder of the run that a training's folder belongs to."""
    return place.parent.parent


def record_key(item: Record) -> Name:
    """The name of a finished training."""
    return item["seed"], item["round"], item["variant"]


def scan_run(folder: Path) -> Run:
    """Read a run from its folder, damaged or not.

    Raises UserError if this is not a run or has another format; DamagedError if its first line can't be read.
    """
    if not safe_files.exists(folder, folder / METRICS):
        why = f"it has no {METRICS}" if folder.exists() else "it does not exist"
        raise UserError(f"{folder}: is not a run folder ({why}){like_run(folder, METRICS)}")
    lines = scan_lines(folder / METRICS)  # a training whose line an interruption cut off counts as not finished
    if not lines or lines[0].value is None:
        reason = lines[0].reason if lines else "it is cut off"
        raise DamagedError(f"{folder / METRICS}: its first line, which says what the run is, is damaged: {reason}")
    about = lines[0].value
    number = about.get("format")
    if about.get("kind") != "run":
        raise UserError(f"{folder / METRICS}: does not start with a run's description")
    if type(number) is not int or not OLDEST <= number <= FORMAT:
        able = f"this version of lthfunc reads formats {OLDEST} to {FORMAT}"
        raise UserError(f"{folder}: its files have format {number!r}, but {able}")
    problem = line_problem(Header, about)
    if problem is not None:
        raise DamagedError(f"{folder / METRICS}: its first line does not say what a run is: {problem}")
    records: dict[Name, Record] = {}
    damaged: dict[int, str] = {}
    for line in lines[1:]:
        if line.value is None:
            damaged[line.number] = str(line.reason)
            continue
        kind = line.value.get("kind")
        try:
            if kind == "training":
                problem = training_problem(line.value, next(iter(records.values()), None))
                if problem is not None:
                    damaged[line.number] = problem
                    continue
                records[record_key(line.value)] = line.value
            elif kind == "dropped":
                records.pop(record_key(line.value), None)
            elif kind == "mended":
                for known in line.value["lines"]:
                    damaged.pop(known, None)
        except (KeyError, TypeError):
            damaged[line.number] = "it lacks the fields of such a line"
    try:
        begun = from_mapping(about["config"])
        complete = resolved(begun)
    except UserError as error:
        raise DamagedError(f"{folder / METRICS}: its first line holds no settings of a run: {error}") from error
    config, settings = _config_of(folder, begun)
    return Run(number, about, complete, config, in_order(list(records.values()), config.control), damaged, settings)


def version_of(folder: Path) -> list[tuple[int, ...] | None]:
    """What changes whenever a run's lines or settings are written."""
    found = [safe_files.status(folder, folder / name) for name in (METRICS, CONFIG)]
    return [None if each is None else (each.st_dev, each.st_ino, each.st_size, each.st_mtime_ns) for each in found]


def _config_of(folder: Path, begun: Config) -> tuple[Config, str | None]:
    """(the settings, what is wrong with their file). A run's settings are fixed, except those that change no result."""
    if safe_files.status(folder, folder / CONFIG) is None:
        return begun, "it is missing; lthfunc resume writes it again"
    again = f"a run's settings are fixed; delete {CONFIG}, and lthfunc resume writes it again"
    try:
        config = read_config(folder / CONFIG, run=folder)
    except UserError as error:
        return begun, f"it cannot be read ({error}); {again}"
    mine, theirs = to_mapping(config), to_mapping(begun)
    different = [name for name in {**theirs, **mine} if name not in FREE and mine.get(name) != theirs.get(name)]
    if config.replicates > begun.replicates:  # seeds may be added to a run
        different.remove("replicates")
    if different:
        name = different[0]
        return begun, f"{name} is {mine.get(name)!r}, but the run started with {theirs.get(name)!r}; {again}"
    return config, None


def read_run(folder: Path) -> tuple[dict[str, Any], Config, list[Record]]:
    """(the run's description, its configuration, its finished trainings). Raises as `whole_run` does."""
    run = whole_run(folder)
    return run.about, run.config, run.records


def whole_run(folder: Path) -> Run:
    """Read a run whose lines and settings must be undamaged.

    Raises UserError if this is not a run, and DamagedError if its lines or settings are damaged.
    """
    run = scan_run(folder)
    if run.damage:
        raise DamagedError(f"{folder}: {run.damage[0]} (to see what remains: lthfunc verify {folder})")
    return run


def in_order(records: list[Record], controls: tuple[str, ...]) -> list[Record]:
    """Records sorted by seed, round and variant; concurrent trainings are written in the order in which they end."""
    variants = (TICKET, *controls)
    rank = {name: number for number, name in enumerate(variants)}
    return sorted(records, key=lambda item: (item["seed"], item["round"], rank.get(item["variant"], len(rank))))
