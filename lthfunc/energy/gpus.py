"""Which of a machine's GPUs a device of torch is, for NVML, which reads their energy and numbers them in its own way.

CUDA leaves out what CUDA_VISIBLE_DEVICES hides and sorts the rest by it; NVML numbers all of them by their place on
the bus. So they are matched by UUID, of which CUDA and NVML have the same.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from lthfunc.errors import UserError


class Card(NamedTuple):
    """A GPU. number: NVML's of it. shared: whether it is divided (MIG), which NVML meters as a whole."""

    number: int
    shared: bool


def card_of(device: str) -> Card:
    """The GPU that `cuda` or `cuda:N` is, or is a part of.

    Raises UserError where NVML is missing, or doesn't know that GPU.
    """
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
    """The parts that a GPU is divided into; none where it isn't, or cannot be."""
    try:
        divided, _ = nvml.nvmlDeviceGetMigMode(card)
        most = nvml.nvmlDeviceGetMaxMigDeviceCount(card) if divided else 0
    except nvml.NVMLError:
        return
    for number in range(most):
        try:
            yield nvml.nvmlDeviceGetMigDeviceHandleByIndex(card, number)
        except nvml.NVMLError:
            continue  # there are fewer than there could be


def _bare(uuid: Any) -> str:
    """A UUID without what says of what it is: `GPU-…` and `MIG-…` are NVML's, CUDA says neither."""
    text = uuid.decode() if isinstance(uuid, bytes) else str(uuid)
    return text.removeprefix("MIG-").removeprefix("GPU-").lower()
