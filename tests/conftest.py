"""What the tests share: small real data, small networks, and where a GPU or MNIST may be missing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores: threads that wait for others' would spin
    os.environ.setdefault("OMP_NUM_THREADS", "1")
if sys.dont_write_bytecode:  # without it, each of some 60 processes that tests start would compile torch, in 7 s
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
# Inductor tries each instruction set of the processor once per cache, which takes 20 s of compiling.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")

import torch
from matplotlib.figure import Figure
from torch import nn

import lthfunc as lf
from lthfunc.trees.types import Dataset, Split

ROOT = Path(__file__).resolve().parent.parent
_SAVEFIG: Any = Figure.savefig


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the tests marked as long, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    skipped = {} if torch.cuda.is_available() else {"gpu": "no CUDA device on this machine"}
    if not config.getoption("--long"):
        skipped["long"] = "takes long; pytest --long runs it"
    for item in items:
        for marker, reason in skipped.items():
            if item.get_closest_marker(marker):  # not by keywords, among which is the checkout's folder
                item.add_marker(pytest.mark.skip(reason=reason))


def shorter(split: Split, count: int) -> Split:
    """The first examples of a split."""
    return Split(split.x[:count], split.y[:count])


def with_splits(data: Dataset, change: Callable[[Split], Split]) -> Dataset:
    """Data whose splits are changed."""
    return data._replace(train=change(data.train), val=change(data.val), test=change(data.test))


@pytest.fixture(scope="session")
def digits() -> Dataset:
    """The bundled digits: 1,257 training images of 8×8."""
    return lf.data.load("digits")


@pytest.fixture(scope="session")
def few_digits(digits: Dataset) -> Dataset:
    """A few hundred real digits, for trainings of some steps."""
    return digits._replace(train=shorter(digits.train, 240), val=shorter(digits.val, 60), test=shorter(digits.test, 60))


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    """A folder with the genuine MNIST: $LTHFUNC_DATA, or ../shared/data beside the checkout."""
    for folder in (os.environ.get("LTHFUNC_DATA"), ROOT.parent / "shared" / "data"):
        if folder and (Path(folder) / "MNIST" / "raw").exists():
            return Path(folder)
    pytest.skip("MNIST is not here: name its folder in LTHFUNC_DATA")


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """A bucket of a server that speaks S3."""
    fsspec = pytest.importorskip("fsspec")
    server = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    patch = pytest.MonkeyPatch()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        patch.setenv(name, "testing")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    running = server.ThreadedMotoServer(port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir("bucket")
    yield "s3://bucket"
    running.stop()
    patch.undo()


class NormedNet(nn.Module):
    """A convolution, BatchNorm and a linear layer: buffers that change in training."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4 * 8 * 8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc(torch.relu(self.norm(self.conv(x))).flatten(1))
        return out


class DroppingNet(nn.Module):
    """A network that draws random numbers in training."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.drop, self.fc2 = nn.Linear(64, 32), nn.Dropout(0.5), nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc2(self.drop(torch.relu(self.fc1(x.flatten(1)))))
        return out


def run(*arguments: object) -> int:
    """The exit code of a command, run in this process."""
    from lthfunc_cli.main import main

    code: int = main([str(argument) for argument in arguments])
    return code


#: Seconds after which something hangs, on a machine that is busy, too.
HANG = 300


def until(condition: Callable[[], Any], process: subprocess.Popen[Any] | None = None) -> Any:
    """What a condition comes to be, once it is; at the latest when a process ends that should make it come."""
    end = time.monotonic() + HANG
    while time.monotonic() < end:
        if found := condition():
            return found
        assert process is None or process.poll() is None, "the process ended before"
        time.sleep(0.05)
    raise AssertionError("it never came")


def gradient_of(leaf: torch.Tensor) -> torch.Tensor:
    """What a leaf's grad has become by a backward pass."""
    assert leaf.grad is not None
    return leaf.grad


def noted(seen: list[Any], value: Any) -> Any:
    """A value that a list gets too: for lambdas."""
    seen.append(value)
    return value


def under_way(folder: Path, trainings: int = 1) -> bool:
    """Whether so many trainings of a run that another process works on have taken steps."""
    from lthfunc.scheduling.progress import progress

    found = (progress(folder) or {}).get("trainings", ())
    return sum(bool(each["at"] > each["start"]) for each in found) >= trainings


def _blank(figure: Figure, file: Any, **how: Any) -> None:
    _SAVEFIG(Figure((1, 1)), file, **how)


@pytest.fixture(scope="session", autouse=True)
def blank() -> Iterator[None]:
    """Pictures are made, and left blank in their files: pixels take longer than all else in a short run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", _blank)
        yield


@pytest.fixture(scope="module")
def drawn() -> Iterator[None]:
    """Where pictures are looked at, they are drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", _SAVEFIG)
        yield


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A machine with two pretended GPUs, cuda:0 and cuda:1."""
    from pretended import pretended_gpus

    with pretended_gpus(monkeypatch) as machine:
        yield machine
