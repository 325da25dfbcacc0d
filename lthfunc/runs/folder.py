"""The files of a run.

    config.toml                       the settings that reproduce it
    metrics.jsonl                     first what it ran on, then a line per finished training
    ticket.safetensors                the last ticket of the first seed (rounds > 0)
    seed0/anchor.safetensors          what pruned networks are rewound to
    seed0/round00/params.safetensors  params and buffers at the end of the training
    seed0/round00/masks.safetensors   its masks
    seed0/round01-reinit/…            a control
    seed0/ticket.safetensors          the last ticket of this seed

A training exists once its line stands in metrics.jsonl; files are written before that, each whole or not at all.
"""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

import lthfunc
from lthfunc.errors import UserError, invalid
from lthfunc.experiments.config import Config, to_mapping
from lthfunc.experiments.iterative import TICKET, Done, Round
from lthfunc.experiments.records import Record
from lthfunc.hardware import processor_name
from lthfunc.runs.lines import append_lines, read_lines
from lthfunc.runs.settings import read_config, to_toml
from lthfunc.trees.files import load_tree, save_ticket, save_tree, write_atomically
from lthfunc.trees.ops import to_device
from lthfunc.trees.types import Dataset, TrainState

CONFIG = "config.toml"
METRICS = "metrics.jsonl"
TICKET_FILE = "ticket.safetensors"
PRUNE = "prune"
TRAIN = "train"
TRANSFER = "transfer"


def check_free(folder: Path) -> None:
    """Raise UserError where a run can't be written: another run, other files, or no permission."""
    if folder.exists() and not folder.is_dir():
        raise invalid("--out", str(folder), "a folder, and this is a file")
    if (folder / CONFIG).exists():
        raise UserError(
            f"--out: {str(folder)!r} holds another run; name another folder, or go on with it: lthfunc resume {folder}"
        )
    if folder.exists() and any(folder.iterdir()):
        raise invalid("--out", str(folder), "a new or empty folder, and this one holds files")
    parent = folder
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise invalid("--out", str(folder), f"a folder that can be made; {str(parent)!r} cannot be written to")


def create(
    folder: Path, config: Config, command: str, source: Path | None = None, *, data: Dataset | None = None
) -> None:
    """Make the folder with its configuration and the first line of its metrics. source: the run it is made from."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "kind": "run",
        "command": command,
        **({} if source is None else {"source": str(source.resolve())}),
        "machine": machine(config.device, config.threads),
        **({} if data is None else {"data": data_facts(data)}),
        "config": to_mapping(config),
    }
    made_by = f"lthfunc {command} " + ("--config THIS_FILE" if source is None else f"of {source}")
    write_atomically(folder / METRICS, (json.dumps(about) + "\n").encode())
    write_atomically(folder / CONFIG, to_toml(config, made_by).encode())


def data_facts(data: Dataset) -> dict[str, Any]:
    """What a data set was: sizes of its splits, the shape of an input, and its normalisation."""
    return {
        "name": data.name,
        **{name: len(getattr(data, name).x) for name in ("train", "val", "test")},
        "shape": list(data.shape),
        "classes": data.classes,
        "scale": None if data.scale is None else data.scale._asdict(),
    }


def machine(device: str, threads: int | None = None) -> dict[str, Any]:
    """What a run's numbers depend on besides its settings. threads: of a training, where not those set now."""
    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    return {
        "lthfunc": lthfunc.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": processor_name(),
        "threads": threads or torch.get_num_threads(),
        "gpu": gpu,
    }


def training_folder(folder: Path, seed: int, number: int, variant: str) -> Path:
    """Where the files of one training lie."""
    suffix = "" if variant == TICKET else f"-{variant}"
    return folder / f"seed{seed}" / f"round{number:02d}{suffix}"


def save_training(folder: Path, config: Config, seed: int, result: Round, item: Record, *, first_seed: bool) -> None:
    """Write a finished training: its files, then its line."""
    place = training_folder(folder, seed, result.number, result.variant)
    place.mkdir(parents=True, exist_ok=True)
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
    save_tree(place / "params.safetensors", {"params": state.params, "buffers": state.buffers}, about)
    save_tree(place / "masks.safetensors", {"masks": result.start.masks}, about)
    if result.variant == TICKET:
        if result.number == 0:
            anchor = result.anchor
            header = {**about, "step": int(anchor.step)}
            tree = {"params": anchor.params, "buffers": anchor.buffers}
            save_tree(place.parent / "anchor.safetensors", tree, header)
        else:
            header = {**about, "step": int(result.fit.curve[0].step)}
            for target in (place.parent, folder) if first_seed else (place.parent,):
                save_ticket(target / TICKET_FILE, result.start, header)
    append_lines(folder / METRICS, [{"kind": "training", **item}])


def read_run(folder: Path) -> tuple[dict[str, Any], Config, list[Record]]:
    """(what the run is, its configuration, its finished trainings). Raises UserError where this is no run."""
    if not (folder / CONFIG).exists() or not (folder / METRICS).exists():
        raise UserError(f"{folder}: is not a run folder (it has no {CONFIG} with {METRICS})")
    config = read_config(folder / CONFIG)
    lines = read_lines(folder / METRICS)  # a training whose line an interruption cut off counts as not finished
    if not lines or lines[0].get("kind") != "run":
        raise UserError(f"{folder / METRICS}: does not begin with a run's description")
    records = [line for line in lines[1:] if line.get("kind") == "training"]
    return lines[0], config, in_order(records, config.control)


def in_order(records: list[Record], controls: tuple[str, ...]) -> list[Record]:
    """Records by seed, round and variant; trainings side by side end, and are written, in any order."""
    variants = (TICKET, *controls)
    return sorted(records, key=lambda item: (item["seed"], item["round"], variants.index(item["variant"])))


def done_so_far(folder: Path, device: str, seed: int, records: list[Record]) -> Done | None:
    """Where a seed's experiment stands, on the device; None where its dense training has not ended."""
    mine = [item for item in records if item["seed"] == seed]
    rounds = [item["round"] for item in mine if item["variant"] == TICKET]
    if not rounds:
        return None
    number = max(rounds)
    place = training_folder(folder, seed, number, TICKET)
    trained, about = load_tree(place / "params.safetensors")
    masks, _ = load_tree(place / "masks.safetensors")
    anchor, anchor_about = load_tree(place.parent / "anchor.safetensors")

    def state(tree: dict[str, Any], step: int) -> TrainState:
        bare = TrainState(tree["params"], tree.get("buffers", {}), masks["masks"], (), torch.tensor(step))
        return to_device(bare, device)

    return Done(
        number=number,
        trained=state(trained, about["step"]),
        anchor=state(anchor, anchor_about["step"]),
        finished=frozenset((item["round"], item["variant"]) for item in mine),
    )
