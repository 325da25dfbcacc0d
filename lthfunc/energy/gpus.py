"""The NVML index of a torch device: NVML reads the energy of GPUs and has its own order.

CUDA_VISIBLE_DEVICES hides and reorders GPUs for CUDA, while NVML numbers all of them by their position on the bus. They
are therefore matched by UUID.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from lthfunc.errors import UserError


class Card(NamedTuple):
    """A GPU. number: its NVML index. shared: whether it is divided (MIG); NVML meters it as a whole."""

    number: int
    shared: bool


def card_of(device: str) -> Card:
    """The GPU that `cuda` or `cuda:N` is or is a part of. Raises UserError where NVML is missing or doesn't find it."""
    wanted = _bare(str(torch.cuda.get_device_properties(device).uuid))
    with _nvml() as nvml:
        for index in range(nvml.nvmlDeviceGetCount()):
            card = nvml.nvmlDeviceGetHandleByIndex(index)
            parts = list(_parts(nvml, card))
            if wanted in (_bare(nvml.nvmlDeviceGetUUID(each)) for each in (card, *parts)):
                return Card(index, bool(parts))
    raise UserError(f"--energy: NVML finds no GPU with the UUID of {device} ({wanted})")


@contextmanager
def _nvml() -> Iterator[Any]:
    try:
        pynvml: Any = importlib.import_module("pynvml")
    except ImportError as error:
        raise UserError("--energy: metering a GPU needs NVML (pip install nvidia-ml-py)") from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise UserError(f"--energy: NVML doesn't start ({error})") from error
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def _parts(nvml: Any, card: Any) -> Iterator[Any]:
    """The parts that a GPU is divided into, if any."""
    try:
        divided, _ = nvml.nvmlDeviceGetMigMode(card)
        most = nvml.nvmlDeviceGetMaxMigDeviceCount(card) if divided else 0
    except nvml.NVMLError:
        return
    for number in range(most):
        try:
            yield nvml.nvmlDeviceGetMigDeviceHandleByIndex(card, number)
        except nvml.NVMLError:
            continue  # fewer parts than the maximum


def _bare(uuid: Any) -> str:
    """A UUID without NVML's prefix, `GPU-` or `MIG-`."""
    text = uuid.decode() if isinstance(uuid, bytes) else str(uuid)
    return text.removeprefix("MIG-").removeprefix("GPU-").lower()
