"""Checks of a run's files, training by training: checksums, and whether tensors and records are consistent."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lthfunc.errors import UserError
from lthfunc.experiments.config import masks_nest
from lthfunc.experiments.iterative import TICKET
from lthfunc.experiments.records import Record, change_from
from lthfunc.runs import safe_files
from lthfunc.runs.checkpoints import checkpoints, is_whole
from lthfunc.runs.folder import MASKS, PARAMS, Name, Run, record_key, training_folder, training_folders
from lthfunc.runs.manifests import MANIFEST, file_problem, load_checked, read_manifest
from lthfunc.runs.ticket_files import OLD_TICKET, ticket_file_problems
from lthfunc.runs.unfinished import is_finished
from lthfunc.training.mask_updates import masks_digest
from lthfunc.trees.ops import Count, count, layer_counts


class Problem(NamedTuple):
    """A problem. name: the finished training that has it; None: the run as a whole. is_ticket: of a ticket file."""

    where: str
    what: str
    name: Name | None = None
    is_ticket: bool = False

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def sum_problems(folder: Path, run: Run, *, sizes: bool = False) -> Iterator[Problem]:
    """Files of finished trainings that are missing or differ from what was written. sizes: check only their sizes."""
    for item in run.records:
        name = record_key(item)
        place = training_folder(folder, *name)
        where = str(place.relative_to(folder))
        try:
            sums = read_manifest(place)
        except UserError as error:
            yield Problem(f"{where}/{MANIFEST}", str(error).partition(": ")[2], name)
            continue
        for file, expected in sums.items():
            problem = file_problem(folder, place / file, expected, sizes=sizes)
            if problem is not None and file != f"../{OLD_TICKET}":  # of which later rounds of format 2 wrote others
                yield Problem(_relative(folder, place / file), problem, name)
    for file, problem in ticket_file_problems(folder, run, sizes=sizes) if is_finished(run) else ():
        if run.format > 2 or safe_files.status(folder, folder / file) is not None:
            yield Problem(file, f"{problem}; lthfunc resume repairs that", is_ticket=True)


def content_problems(folder: Path, run: Run, bad: set[Name]) -> Iterator[Problem]:
    """Trainings whose tensors contradict each other, their records, or the rules of pruning. bad: those not to read."""
    before: dict[int, dict[str, Tensor]] = {}
    nested = masks_nest(run.config)
    for item in run.records:
        name = record_key(item)
        if name in bad:
            continue
        place = training_folder(folder, *name)
        where = str(place.relative_to(folder))
        try:
            trained, about = load_checked(place, PARAMS)
            masks = load_checked(place, MASKS)[0].get("masks", {})
            problems = list(_within(item, trained.get("params", {}), masks, about))
            if item["variant"] == TICKET and nested:
                previous = before.get(item["seed"])
                problems += [] if previous is None else list(_not_nested(previous, masks))
        except UserError as error:
            yield Problem(where, str(error).partition(": ")[2], name)
            continue
        yield from (Problem(where, problem, name) for problem in problems)
        if item["variant"] == TICKET:
            before[item["seed"]] = masks


def _within(item: Record, params: dict[str, Tensor], masks: dict[str, Tensor], about: dict[str, Any]) -> Iterator[str]:
    for name, mask in masks.items():
        if mask.dtype != torch.bool:
            yield f"the mask of {name} is {mask.dtype}, not bool"
        elif name not in params:
            yield f"{name} has a mask and no params"
        elif params[name].shape != mask.shape:
            yield f"the mask of {name} is {tuple(mask.shape)}, its params {tuple(params[name].shape)}"
        elif bool(params[name][~mask].any()):
            yield f"{name} has pruned weights that are not zero"
    for name, leaf in params.items():
        if leaf.is_floating_point() and not bool(leaf.isfinite().all()):
            yield f"{name} has weights that are not finite"
    told = Count(item["kept"], item["total"])
    if count(masks) != told or item["density"] != told.density:
        yield f"its masks keep {count(masks).kept:,} of {count(masks).total:,} weights, its record says {told.kept:,}"
    layers = {name: (each["kept"], each["total"]) for name, each in item["layers"].items()}
    if layers != {name: tuple(each) for name, each in layer_counts(masks).items()}:
        yield "its masks keep other weights in some layer than its record says"
    yield from _updates_that_cannot_be(item, masks)
    if about.get("step") != item["final_step"]:
        yield f"its params are of step {about.get('step')}, its record ends at {item['final_step']}"


def _updates_that_cannot_be(item: Record, masks: dict[str, Tensor]) -> Iterator[str]:
    """Updates of masks that don't lead from one to the next, and to the masks at the end."""
    changes = [change_from(each) for each in item.get("updates", ())]
    for before, after in pairwise(changes):
        for name, layer in after.layers.items():
            if layer.kept != before.layers[name].kept - layer.dropped + layer.grown:
                yield f"the update of its masks after step {after.step} does not follow from the one before in {name}"
    if changes and changes[-1].digest != masks_digest(masks):
        yield "its masks are not those of its last update"


def _not_nested(before: dict[str, Tensor], after: dict[str, Tensor]) -> Iterator[str]:
    for name, mask in after.items():
        if name not in before or before[name].shape != mask.shape:
            yield f"the mask of {name} has another shape in the round before"
        elif bool((mask & ~before[name]).any()):
            yield f"the mask of {name} keeps weights that the round before had pruned"


def checkpoint_problems(folder: Path) -> Iterator[Problem]:
    """Damaged checkpoints: their trainings start again."""
    for place in training_folders(folder):
        yield from (
            Problem(_relative(folder, path), "is damaged; its training starts again") for path in _not_whole(place)
        )


def _not_whole(place: Path) -> list[Path]:
    """Damaged checkpoints of a training that may be running: if one is replaced meanwhile, the new one is checked."""
    while True:
        try:
            return [path for path in checkpoints(place) if not is_whole(path)]
        except FileNotFoundError:
            continue


def wrong(folder: Path, run: Run) -> list[Problem]:
    """All problems of a run's finished trainings, and of its tickets."""
    sums = list(sum_problems(folder, run))
    return [*sums, *content_problems(folder, run, {each.name for each in sums if each.name is not None})]


def good_rounds(records: Sequence[Record], bad: set[Name]) -> dict[int, list[int]]:
    """The rounds of each seed whose trainings are all intact."""
    rounds: dict[int, dict[int, None]] = {item["seed"]: {} for item in records}
    lost = {name[:2] for name in bad}
    for seed, number, _ in map(record_key, records):
        rounds[seed] |= {} if (seed, number) in lost else {number: None}
    return {seed: list(of_seed) for seed, of_seed in rounds.items()}


def _relative(folder: Path, path: Path) -> str:
    """The path within the run, with `round00/../anchor.safetensors` shortened."""
    return os.path.normpath(path.relative_to(folder))
