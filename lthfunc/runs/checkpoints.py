"""Checkpoints: an unfinished training on disk, with all that it needs to end with the bits of an uninterrupted one.

A checkpoint is named ``checkpoint-000001200-<SHA-256>.safetensors``, by its step and the checksum of its content, so a
damaged one is recognised. Only the latest is kept; it is deleted when its training has ended.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from lthfunc.energy.amounts import Metered, as_values, from_values
from lthfunc.errors import DamagedError, UserError
from lthfunc.experiments.iterative import Progress
from lthfunc.experiments.records import change_from, plain_change
from lthfunc.runs import safe_files
from lthfunc.runs.folder import make_training_folder, run_of
from lthfunc.runs.manifests import sum_of
from lthfunc.training.optimizer_states import fresh_state
from lthfunc.training.optimizers import Optimizer
from lthfunc.training.packed_fits import PackedFit, fit_at_rest
from lthfunc.training.results import BestNetwork, Fit, Point, SinceLastPoint
from lthfunc.trees.files import tree_bytes, tree_of
from lthfunc.trees.ops import flattened, leaf_difference, map_leaves_like, to_device
from lthfunc.trees.packed_states import AnyState, dense_state
from lthfunc.trees.packed_trees import OnPlaces, mask_on
from lthfunc.trees.types import Params, TrainState

_FORMAT = "lthfunc.checkpoint/2"
#: Without the names of what the optimiser keeps, and dense; read as well.
_DENSE = "lthfunc.checkpoint/1"
_NAME = re.compile(r"checkpoint-(\d{9,})-([0-9a-f]{64})\.safetensors")

#: What reading a checkpoint of another network or version may raise.
_OTHER = (UserError, KeyError, ValueError, TypeError, IndexError, AttributeError)


class Checkpoint(NamedTuple):
    """A checkpoint. seconds: that its training had taken; energy: that it had used, if metered."""

    progress: Progress
    seconds: float
    energy: Metered | None = None


def save_checkpoint(place: Path, progress: Progress, seconds: float, energy: Metered | None = None) -> Path:
    """Write an unfinished training into its folder, in place of the previous checkpoint."""
    fit, anchor = progress
    state, since = fit.state, fit.since
    assert since is not None
    tree = {**(_packed_trees(fit) if isinstance(fit, PackedFit) else _dense_trees(fit)), "random": since.random}
    if anchor is not None:
        tree["anchor"] = {"params": anchor.params, "buffers": anchor.buffers}
    if fit.memory:
        tree["memory"] = {str(number): masks for number, masks in enumerate(fit.memory)}
    about = {
        "format": _FORMAT,
        "step": int(state.step),
        "seconds": seconds,
        "energy": None if energy is None else as_values(energy),
        "curve": [list(point) for point in fit.curve],
        "chosen": fit.curve.index(fit.best.point),
        "since": {"loss": since.loss, "steps": since.steps},
        "anchor_step": None if anchor is None else int(anchor.step),
        "changes": [plain_change(each) for each in fit.changes],
    }
    payload = tree_bytes(tree, about, packed=True)
    return put_checkpoint(place, f"checkpoint-{about['step']:09d}-{sum_of(payload).sha256}.safetensors", payload)


def _dense_trees(fit: Fit) -> dict[str, Any]:
    """The networks of a fit, and its optimiser's state."""
    state, best = fit.state, fit.best
    return {
        "params": state.params, "buffers": state.buffers, "masks": state.masks,
        "opt": _numbered(state.opt, state.params), "chosen": {"params": best.params, "buffers": best.buffers},
    }  # fmt: skip


def _packed_trees(fit: PackedFit) -> dict[str, Any]:
    """The same on survivors, without dense leaves."""
    state, best = fit.state, fit.best.network
    shapes = {name: torch.Size(shape.tolist()) for name, shape in state.shapes.items()}

    def on_places(leaves: Params, positions: Mapping[str, Tensor] = state.positions) -> dict[str, Any]:
        return {
            name: OnPlaces(leaf, positions[name], shapes[name]) if name in shapes else leaf
            for name, leaf in leaves.items()
        }

    return {
        "params": on_places(state.params),
        "buffers": state.buffers,
        "masks": {name: mask_on(places, shapes[name]) for name, places in state.positions.items()},
        "opt": _numbered(map_leaves_like(state.params, state.opt, on_places), state.params),
        "chosen": {"params": on_places(best.params, best.positions), "buffers": best.buffers},
    }


def _numbered(opt: Any, params: Params) -> dict[str, dict[str, Any]]:
    """The leaves of an optimiser's state by number, each under the name of its parameter, which masks go by."""
    paths, found, _ = optree.tree_flatten_with_path(opt, is_leaf=lambda node: isinstance(node, OnPlaces))
    names = [path[-1] if path and path[-1] in params else "" for path in paths]
    return {str(number): {name: leaf} for number, (name, leaf) in enumerate(zip(names, found, strict=True))}


def _leaf(named: dict[str, Tensor] | Tensor) -> Tensor:
    """One leaf of `_numbered`, or of a checkpoint that has it without its name."""
    return next(iter(named.values())) if isinstance(named, dict) else named


def put_checkpoint(place: Path, name: str, payload: bytes) -> Path:
    """Write a checkpoint's file and delete those before it."""
    make_training_folder(place)
    path = place / name
    safe_files.write(run_of(place), path, payload)
    for other in checkpoints(place):
        if other != path:
            safe_files.remove(run_of(place), other)
    return path


def latest_checkpoint(place: Path) -> tuple[str, bytes] | None:
    """The name and content of the latest intact checkpoint, or None."""
    for path in checkpoints(place):
        try:
            payload = _content(path)
        except FileNotFoundError:  # a newer one has replaced it in the meantime
            return latest_checkpoint(place)
        if payload is not None:
            return path.name, payload
    return None


def checkpoints(place: Path) -> list[Path]:
    """A training's checkpoints, the latest first, not yet verified."""
    found = [place / name for name in safe_files.names(run_of(place), place) if _NAME.fullmatch(name)]
    return sorted(found, key=step_of, reverse=True)


def drop_checkpoints(place: Path) -> None:
    """Delete the checkpoints of a training that has ended."""
    for path in checkpoints(place):
        safe_files.remove(run_of(place), path)


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    found = _NAME.fullmatch(path.name)
    assert found is not None
    return int(found[1])


def is_whole(path: Path) -> bool:
    """Whether a checkpoint's content matches the checksum in its name."""
    return _content(path) is not None


def _content(path: Path) -> bytes | None:
    """A checkpoint's content, or None if it doesn't match the checksum in its name."""
    found = _NAME.fullmatch(path.name)
    try:
        payload = safe_files.read(run_of(path.parent), path)
    except DamagedError:  # not a regular file
        return None
    return payload if found is not None and sum_of(payload).sha256 == found[2] else None


def load_checkpoint(place: Path, start: AnyState, optimizer: Optimizer) -> Checkpoint | None:
    """The latest intact checkpoint; None if there is none, or it doesn't fit the training."""
    found = latest_checkpoint(place)
    if found is None:
        return None
    name, payload = found
    try:
        return _checkpoint(*tree_of(payload, place / name), dense_state(start), optimizer)
    except _OTHER:
        return None


def _checkpoint(tree: dict[str, Any], about: dict[str, Any], start: TrainState, optimizer: Optimizer) -> Checkpoint:
    device = start.step.device
    if about["format"] not in (_FORMAT, _DENSE):
        raise ValueError("another format")
    fresh, rebuilt = flattened(fresh_state(optimizer, start))
    opt = [_leaf(tree["opt"][str(number)]) for number in range(len(fresh))]
    state = TrainState(
        tree["params"], tree.get("buffers", {}), tree["masks"], rebuilt(opt), torch.tensor(int(about["step"]))
    )
    for ours, theirs in ((state.params, start.params), (state.buffers, start.buffers),
                         (state.masks, start.masks), (dict(enumerate(opt)), dict(enumerate(fresh)))):  # fmt: skip
        if leaf_difference(ours, theirs) is not None:
            raise ValueError("another network")
    curve = tuple(Point(int(step), *numbers) for step, *numbers in about["curve"])
    chosen = BestNetwork(curve[about["chosen"]], tree["chosen"]["params"], tree["chosen"].get("buffers", {}))
    since = SinceLastPoint(float(about["since"]["loss"]), int(about["since"]["steps"]), tree["random"])
    anchor = None
    if about["anchor_step"] is not None:
        parts = tree["anchor"]
        step = torch.tensor(int(about["anchor_step"]))
        anchor = to_device(TrainState(parts["params"], parts.get("buffers", {}), state.masks, (), step), device)
    chosen = chosen._replace(params=to_device(chosen.params, device), buffers=to_device(chosen.buffers, device))
    memory = tuple(to_device(tree["memory"][str(number)], device) for number in range(len(tree.get("memory", {}))))
    changes = tuple(map(change_from, about.get("changes", ())))
    fit = Fit(to_device(state, device), chosen, curve, since, changes, memory)
    energy = about.get("energy")
    progress = Progress(fit_at_rest(fit), anchor)
    return Checkpoint(progress, float(about["seconds"]), None if energy is None else from_values(energy))
