"""Which GPU's energy is metered: that of the training, whatever CUDA_VISIBLE_DEVICES makes of the others."""

from __future__ import annotations

import os
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from lthfunc.energy.gpus import Card, card_of
from lthfunc.energy.meter import _CodeCarbon
from lthfunc.errors import UserError

#: A machine's GPUs in NVML's order, which is that of the bus; the second is divided into two.
CARDS = ("11111111-aaaa", "22222222-bbbb", "33333333-cccc")
PARTS = {1: ("dddddddd-1111", "eeeeeeee-2222")}


class FakeNvml(ModuleType):
    """NVML of that machine."""

    class NVMLError(Exception):
        """What it raises."""

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.users = 0

    def nvmlInit(self) -> None:  # noqa: N802
        self.users += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.users -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(CARDS)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:  # noqa: N802
        return index

    def nvmlDeviceGetUUID(self, handle: Any) -> Any:  # noqa: N802
        """Bytes, as older versions return them, of whole GPUs."""
        return b"GPU-" + CARDS[handle].encode() if isinstance(handle, int) else f"MIG-{handle}"

    def nvmlDeviceGetMigMode(self, handle: int) -> tuple[int, int]:  # noqa: N802
        if handle == 2:
            raise self.NVMLError("Not Supported")
        return (int(handle in PARTS),) * 2

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: int) -> int:  # noqa: N802
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: int, number: int) -> str:  # noqa: N802
        if number >= len(PARTS[handle]):
            raise self.NVMLError("Not Found")
        return PARTS[handle][number]


def properties(device: str) -> Any:
    """What CUDA says of a device: it numbers what is visible, in the order in which it was named."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(len(CARDS))))).split(",")
    named = visible[torch.device(device).index or 0]
    if named.isdigit():
        return SimpleNamespace(uuid=CARDS[int(named)])
    (found,) = [
        each
        for each in (*CARDS, *(part for parts in PARTS.values() for part in parts))
        if each.startswith(named.removeprefix("MIG-").removeprefix("GPU-"))
    ]
    return SimpleNamespace(uuid=found)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    made = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", made)
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    return made


@pytest.mark.parametrize(
    ("visible", "device", "card"),
    [
        (None, "cuda", Card(0, False)),
        (None, "cuda:2", Card(2, False)),
        ("2", "cuda", Card(2, False)),
        ("2,0", "cuda:1", Card(0, False)),
        ("GPU-33333333-cccc,GPU-11111111", "cuda:0", Card(2, False)),
        ("GPU-33333333-cccc,GPU-11111111", "cuda:1", Card(0, False)),
        ("MIG-eeeeeeee-2222", "cuda", Card(1, True)),
        ("1", "cuda", Card(1, True)),
    ],
)
def test_a_gpu_is_found_by_its_uuid(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch, visible: str | None, device: str, card: Card
) -> None:
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert card_of(device) == card
    assert nvml.users == 0, "it was shut down"


def test_the_meter_is_given_nvmls_number(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    codecarbon = pytest.importorskip("codecarbon")
    given: dict[str, Any] = {}

    class Tracker:
        def __init__(self, **settings: Any) -> None:
            given.update(settings)

        def start_task(self, name: str) -> None: ...

    monkeypatch.setattr(codecarbon, "OfflineEmissionsTracker", Tracker)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    _CodeCarbon("cuda:0", "FRA")
    assert given["gpu_ids"] == [2]
    given.clear()
    _CodeCarbon("cpu", "FRA")
    assert "gpu_ids" not in given


def test_a_gpu_that_cannot_be_metered_is_said(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="ffffffff"))
    with pytest.raises(UserError, match=r"--energy: NVML finds no GPU with the UUID of cuda:1 \(ffffffff\)"):
        card_of("cuda:1")
    monkeypatch.setattr(nvml, "nvmlInit", lambda: (_ for _ in ()).throw(nvml.NVMLError("Driver Not Loaded")))
    with pytest.raises(UserError, match=r"--energy: NVML doesn't start \(Driver Not Loaded\)"):
        card_of("cuda:1")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(UserError, match=r"pip install nvidia-ml-py"):
        card_of("cuda:1")
