"""Finished trainings on disk: written when they end, read when an experiment continues."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lthfunc.errors import DamagedError
from lthfunc.experiments.config import Config, first_round, to_mapping
from lthfunc.experiments.iterative import TICKET, Done, Round
from lthfunc.experiments.records import Record
from lthfunc.experiments.settings.setting import MOST_STEPS
from lthfunc.runs import safe_files
from lthfunc.runs.folder import ANCHOR, FIRST, INITIAL, MASKS, METRICS, PARAMS, make_training_folder, training_folder
from lthfunc.runs.json_lines import append_lines
from lthfunc.runs.manifests import load_checked, sum_of, write_manifest
from lthfunc.trees.files import tree_bytes
from lthfunc.trees.model import Model
from lthfunc.trees.ops import apply_masks, leaf_difference, same_bits, to_device
from lthfunc.trees.types import Ticket, TrainState


def save_training(folder: Path, config: Config, seed: int, result: Round, item: Record) -> None:
    """Write a finished training: its files, their checksums, then its line."""
    place = training_folder(folder, seed, result.number, result.variant)
    make_training_folder(place)
    state = result.fit.state
    about = {
        "config": to_mapping(config),
        "seed": seed,
        "round": result.number,
        "variant": result.variant,
        "kept": item["kept"],
        "total": item["total"],
        "step": int(state.step),
    }
    pruned = result.variant == TICKET and result.number > 0
    from_anchor = pruned and _begins_at_anchor(result)
    if pruned:
        about[FIRST] = f"../{ANCHOR}" if from_anchor else INITIAL
    files = {
        PARAMS: tree_bytes({"params": state.params, "buffers": state.buffers}, about, packed=True),
        MASKS: tree_bytes({"masks": state.masks}, about, packed=True),
    }
    if result.variant == TICKET and result.number == first_round(config):
        anchor = result.anchor
        tree = {"params": anchor.params, "buffers": anchor.buffers}
        files[f"../{ANCHOR}"] = tree_bytes(tree, {**about, "step": int(anchor.step)}, packed=True)
    if pruned and not from_anchor:
        tree = {"params": result.start.params, "buffers": result.start.buffers}
        files[INITIAL] = tree_bytes(tree, {**about, "step": int(result.fit.curve[0].step)}, packed=True)
    for name, payload in files.items():
        safe_files.write(folder, place / name, payload)
    write_manifest(place, {name: sum_of(payload) for name, payload in files.items()})
    append_lines(folder / METRICS, [{"kind": "training", **item}])


def _begins_at_anchor(result: Round) -> bool:
    """Whether a pruned round was trained from exactly the anchor's weights, so that they need no file of their own.

    Of masks that changed, those at the end count, which are the ones that are stored.
    """
    start, anchor, masks = result.start, result.anchor, result.fit.state.masks
    return (
        result.fit.curve[0].step == int(anchor.step)
        and same_bits(apply_masks(start.params, masks), apply_masks(anchor.params, masks))
        and same_bits(start.buffers, anchor.buffers)
    )


def load_anchor(folder: Path, seed: int, first: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """(tree, metadata) of a seed's anchor. first: the number of its first round. Raises DamagedError."""
    return load_checked(training_folder(folder, seed, first, TICKET), f"../{ANCHOR}")


def done_so_far(folder: Path, device: str, seed: int, records: list[Record], model: Model | None = None) -> Done | None:
    """Where a seed's experiment has stopped, on the device; None if its dense training has not ended.

    model: the network of the files. Raises DamagedError if a file is damaged or of another network.
    """
    mine = [item for item in records if item["seed"] == seed]
    rounds = [item["round"] for item in mine if item["variant"] == TICKET]
    if not rounds:
        return None
    number = max(rounds)
    place = training_folder(folder, seed, number, TICKET)
    masks = load_checked(place, MASKS)[0]

    def state(found: tuple[dict[str, Any], dict[str, Any]]) -> TrainState:
        return to_device(state_of(place, found, masks, model), device)

    return Done(
        number=number,
        trained=state(load_checked(place, PARAMS)),
        anchor=state(load_anchor(folder, seed, min(rounds))),
        finished=frozenset((item["round"], item["variant"]) for item in mine),
    )


def state_of(
    place: Path, found: tuple[dict[str, Any], dict[str, Any]], masks: dict[str, Any], model: Model | None
) -> TrainState:
    """A state made of (tree, metadata) of params, and the tree of masks. Raises DamagedError if they don't form one."""
    tree, about = found
    parts = (tree.get("params", {}), tree.get("buffers", {}), masks.get("masks", {}))
    step = about.get("step")
    if type(step) is not int or not 0 <= step <= MOST_STEPS or not all(isinstance(part, dict) for part in parts):
        raise DamagedError(f"{place}: its files are not those of a training")
    state = TrainState(*parts, (), torch.tensor(step))
    if model is not None:
        check_fits(place, state, model)
    return state


def check_fits(place: Path, state: TrainState | Ticket, model: Model) -> None:
    """Raise DamagedError if a state's leaves differ from the network's in names, shapes or types."""
    params, buffers = dict(model.training.named_parameters()), dict(model.training.named_buffers())
    masks = {name: torch.empty(params[name].shape, dtype=torch.bool, device="meta") for name in model.prunable}
    for ours, theirs in ((state.params, params), (state.buffers, buffers), (state.masks, masks)):
        difference = leaf_difference(ours, theirs)
        if difference is not None:
            raise DamagedError(f"{place}: is not of the network {model.name}: {difference}")
