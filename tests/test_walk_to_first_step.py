"""From a command to its first step: settings are resolved and planned once, and a run's lines are read once."""

from __future__ import annotations

import signal
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from lthfunc_cli.main import main

from lthfunc.experiments.config import Config
from lthfunc.runs import safe_files
from lthfunc.runs.folder import CONFIG, ENVIRONMENT, METRICS
from lthfunc.runs.measurements import MEASURED
from lthfunc.scheduling.progress import Tracker
from lthfunc.training.session import TrainingSession

SMALL = ["--rounds", "1", "--steps", "6", "--eval-every", "3", "--engine", "eager", "--threads", "1"]
#: The module of the settings themselves, whose functions only look at them.
OWN = "lthfunc.experiments.config"
RESOLVED, PLANNED = "lthfunc.experiments.resolve.resolved", "lthfunc.experiments.plan.prepare"


class FirstStep(BaseException):
    """Ends a command where it would train."""


def module_of(frame: FrameType | None) -> str:
    """The nearest of this library's modules that a call comes from."""
    while frame is not None:
        if (name := str(frame.f_globals.get("__name__"))).startswith(("lthfunc.", "lthfunc_cli.")):
            return name
        frame = frame.f_back
    return ""


def package_of(module: str) -> str:
    return module if module.startswith("lthfunc_cli") else module.rpartition(".")[0]


def walked(words: list[str]) -> tuple[Counter[str], Counter[str]]:
    """(how often each function was given the settings by another package, how often each file was read).

    The functions that decide settings and plan a run are counted wherever they are called.
    """
    doors, files = Counter[str](), Counter[str]()
    seen, read = set[FrameType](), safe_files.read

    def entered(frame: FrameType, event: str, value: Any) -> None:
        module = str(frame.f_globals.get("__name__"))
        if event != "call" or not module.startswith("lthfunc.") or module == OWN or frame in seen:
            return  # a generator that goes on is in the same frame
        seen.add(frame)
        code = frame.f_code
        name = f"{module}.{code.co_name}"
        if name not in (RESOLVED, PLANNED) and package_of(module) == package_of(module_of(frame.f_back)):
            return
        given = [frame.f_locals.get(each) for each in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]]
        if any(isinstance(each, Config) for each in given):
            doors[name] += 1

    def reading(root: Path, path: Path, most: int | None = None) -> bytes:
        files[path.name] += 1
        return read(root, path, most)

    def ended(self: TrainingSession, *given: Any, **named: Any) -> None:
        raise FirstStep

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(safe_files, "read", reading)
        patch.setattr(TrainingSession, "__init__", ended)
        sys.setprofile(entered)
        try:
            with pytest.raises(FirstStep):
                main(words)
        finally:
            sys.setprofile(None)
    return doors, files


@pytest.fixture(scope="module", name="interrupted")
def an_interrupted_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its dense training is finished, that of its ticket is not."""
    folder, step = tmp_path_factory.mktemp("runs") / "run", Tracker.step

    def interrupting(self: Tracker, task: Any, number: int, point: Any) -> None:
        step(self, task, number, point)
        if task.number == 1 and number == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tracker, "step", interrupting)
        assert main(["prune", *SMALL, "--out", str(folder)]) == 130
    return folder


@pytest.mark.parametrize(
    "command",
    [
        ["prune", *SMALL, "--out", "new"],
        ["resume", "RUN"],
        ["branch", "RUN", "--from-round", "0", "--score", "random", "--out", "new"],
        ["methods", *SMALL, "--density", "0.5", "--method", "set"],
    ],
    ids=lambda command: command[0],
)
def test_settings_are_decided_once_and_files_read_once(
    command: list[str], interrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A function of another package that takes the settings is called once.

    A branch resolves the run's and its own, a study the shared ones and each method's.
    """
    monkeypatch.chdir(tmp_path)
    doors, files = walked([str(interrupted) if word == "RUN" else word for word in command])
    assert doors[RESOLVED] == (2 if command[0] in ("branch", "methods") else 1)
    assert doors[PLANNED] == 1
    assert [name for name, count in doors.items() if count > 1 and name != RESOLVED] == []
    texts = {name: files[name] for name in (METRICS, CONFIG, ENVIRONMENT, MEASURED) if files[name]}
    assert set(texts.values()) <= {1}, texts
    assert (METRICS in texts) == ("RUN" in command)
