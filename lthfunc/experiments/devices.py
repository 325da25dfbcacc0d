"""The device of a run, and the settings that it doesn't support."""

from __future__ import annotations

import os
import re

import torch

from lthfunc.distributed.collectives import Collectives
from lthfunc.distributed.data_parallel import rank_batch_size
from lthfunc.errors import UserError, invalid
from lthfunc.experiments.config import Config, Decision, filled
from lthfunc.training.cpu_threads import check_threads
from lthfunc.training.precision import check_precision


def decide_device(config: Config, collectives: Collectives) -> list[Decision]:
    """Decide the device, and how many trainings may share it. Raises UserError for unsupported settings."""
    if config.executor == "local":  # on a cluster, its nodes' cores count
        check_threads(config.threads)
    if collectives.world_size > 1:
        _check_ranks(config, collectives)
    device, decisions = choose_device(config.device), list[Decision]()
    if config.device == "auto":
        decisions.append(Decision("device", device, "PyTorch finds no GPU" if device == "cpu" else "the first GPU"))
    if config.executor == "local" and device == "cpu":  # a GPU's memory is considered later
        check_threads(config.jobs, "jobs")
    if config.energy and device == "cpu":
        decisions.append(Decision("jobs", 1, "energy cannot be measured per process"))
    check_precision(config.precision, device)
    return decisions


def choose_device(name: str) -> str:
    """`auto` is the first GPU, or the CPU if there is none. Raises UserError for a device that doesn't exist.

    A named GPU becomes the current one, for code that doesn't name a GPU.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    here = ["cpu", "cuda", *(f"cuda:{i}" for i in range(gpus))] if gpus else ["cpu"]
    if name == "auto":
        return "cuda" if gpus else "cpu"
    if name not in here:
        raise invalid("--device", name, f"one of {', '.join(['auto', *here])} on this machine")
    if name.startswith("cuda:"):
        torch.cuda.set_device(name)
    return name


def data_room(device: str) -> int | None:
    """Bytes of the device's memory that a data set may use; a larger one is streamed."""
    return torch.cuda.mem_get_info(device)[0] // 2 if device.startswith("cuda") else None


def _check_ranks(config: Config, collectives: Collectives) -> None:
    """Raise UserError for settings that several ranks don't support."""
    rank_batch_size(filled(config.batch_size), collectives)
    if config.executor != "local":
        raise invalid("--executor", config.executor, "local on several ranks, which share one training")
    if config.jobs is not None and config.jobs > 1:
        raise invalid("--jobs", config.jobs, "1 on several ranks, which run one training at a time")
    if config.energy:
        raise UserError("--energy: measures one process, not several ranks")
    if config.compact:
        raise UserError("--compact: does not work on several ranks, which average the gradients of the whole network")
    if config.engine.startswith("sparse"):
        raise invalid("--engine", config.engine, "auto, eager or compile on several ranks")
    if re.fullmatch(r"cuda:\d+", config.device):
        raise invalid("--device", config.device, "auto, cpu or cuda on several ranks, each of which takes its own GPU")
    mine, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count() if torch.cuda.is_available() else 0
    if config.device == "cuda" and mine >= gpus:
        found = "there is 1 GPU" if gpus == 1 else f"there are {gpus} GPUs"
        raise UserError(f"--device: this rank needs GPU number {mine}, and {found}")
