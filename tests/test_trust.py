"""Code and places that a run's settings name: used where its user typed them, or trusts the run."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
from lthfunc_cli import running
from lthfunc_cli.main import main
from strangers import TINY, a_finished_run, a_run, contents  # noqa: F401

from lthfunc.errors import UserError
from lthfunc.experiments.schema import from_mapping
from lthfunc.experiments.trust import check_trust, places_in
from lthfunc.runs.json_lines import line_of, value_of
from lthfunc.runs.toml_files import to_toml
from lthfunc.training.cpu_threads import most_threads


def with_settings(folder: Path, **settings: object) -> None:
    """A run that says it was made with other settings."""
    first, *rest = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    about = value_of(first.rstrip("\n"))
    about["config"] |= settings
    (folder / "metrics.jsonl").write_text(line_of(about) + "\n" + "".join(rest))
    (folder / "config.toml").write_text(to_toml(from_mapping(about["config"]), "a stranger"))


ELSEWHERE: list[dict[str, object]] = [
    {"executor": "ray://127.0.0.1:9"},
    {"data_dir": "s3://strangers/bucket"},
    {"data_dir": "memory://bucket"},
    {"data_dir": "\\\\server\\share"},
    {"dataset": "hf:stranger/images"},
    {"dataset": "npz:https://stranger.example/x.npz"},
    {"dataset": "folder:gs://stranger/x"},
    {"dataset_option": {"test": "http://stranger.example/x"}},
    {"weights": "http://stranger.example/w.safetensors"},
    {"arch": "timm:hf-hub:stranger/network"},
    {"arch": "timm:resnet18", "arch_option": {"checkpoint_path": "stranger.pth"}},
    {"wandb": True},
]


@pytest.mark.parametrize("settings", ELSEWHERE, ids=str)
def test_places_that_a_run_names_are_not_connected_to(
    run: Path, settings: dict[str, object], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def reached(*given: object, **named: object) -> None:
        raise AssertionError(given)

    with_settings(run, **settings)
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, reached)
    for name in ("lthfunc.scheduling.ray.join_cluster", "lthfunc.remote.remote_path", "lthfunc.data.hub.read_hub"):
        monkeypatch.setattr(name, reached)
    before = contents(run)
    name = next(reversed(settings))
    for command in (
        "resume run", "export run --to scipy", "specialize run", "connectivity --run run", "info run --classes",
        "branch run --from-round 0 --rounds 1", "transfer run --dataset digits", "prune --config run/config.toml",
    ):  # fmt: skip
        if command.startswith("transfer") and name.startswith("dataset"):  # for which other data were typed
            continue
        if name == "weights" and command.split()[0] in ("export", "specialize", "info"):  # the rounds have their own
            continue
        assert main(command.split()) == 2, command
        err = capsys.readouterr().err.splitlines()[-1]
        assert "the settings connect to" in err or "the settings import code" in err, command
        assert f"{name}" in err
        assert "--trust" in err
    assert contents(run) == before


def test_places_that_were_typed_need_no_trust(run: Path) -> None:
    with_settings(run, data_dir="memory://nowhere", wandb=True)
    check = {"data_dir": "memory://nowhere", "wandb": False}
    assert places_in(check | {"wandb": True}) == {"data_dir": "memory://nowhere", "wandb": "true"}
    check_trust(check, "here", trusted=False, typed=["data_dir"])
    with pytest.raises(UserError, match="data_dir = 'memory://nowhere'"):
        check_trust(check, "here", trusted=False, typed=["arch"])
    assert main(["resume", "run", "--data-dir", ".", "--no-wandb"]) == 0
    assert main(["resume", "run"]) == 0  # which has kept what was typed


def test_a_run_that_changes_before_it_is_locked_is_read_again(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    locked = running.locked

    def changing(folder: Path) -> Any:
        with_settings(folder, wandb=True)
        return locked(folder)

    monkeypatch.setattr(running, "locked", changing)
    assert main(["resume", "run"]) == 2
    assert "the settings connect to wandb = 'true'" in capsys.readouterr().err


def test_a_trial_in_a_strangers_sweep_is_not_believed(run: Path, capsys: Any) -> None:
    sweep = ["sweep", *TINY, "--grid", "lr=0.01,0.02", "--out", "sweep"]
    assert main(sweep) == 0
    (Path("stranger.py")).write_text("import pathlib\npathlib.Path('here').touch()\n")
    lines = Path("sweep/sweep.jsonl").read_text().splitlines(keepends=True)
    Path("sweep/sweep.jsonl").write_text("".join(lines[:2]))  # the second trial is unfinished
    with_settings(Path("sweep/trial001"), score="stranger.py:score")
    main(sweep)
    assert "the settings import code: score = 'stranger.py:score'" in "".join(capsys.readouterr())
    assert not Path("here").exists()


def test_threads_are_bounded_by_the_machine(run: Path, capsys: Any) -> None:
    """Thousands of them would end the process without a word; a run's settings may ask for them too."""
    most = most_threads()
    assert most >= 4 * (os.cpu_count() or 1)
    with_settings(run, threads=10_000)
    for command in (
        "prune --rounds 1 --steps 2 --threads 10000 --out new", "train --steps 2 --threads 10000", "resume run",
        "connectivity --run run", "specialize run --threads 10000",
        "methods --threads 10000 --density 0.5 --method imp",
        "branch run --from-round 0 --rounds 1 --threads 10000",
    ):  # fmt: skip
        assert main(command.split()) == 2, command
        assert f"--threads: invalid value 10000 (expected a whole number from 1 to {most}" in capsys.readouterr().err
    assert not Path("new").exists()
    assert main(["info", "run"]) == 0  # a larger machine's run can be looked at


def test_code_under_a_settings_earlier_name_is_not_imported(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "strange.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\ndef allocation(*_): ...\n")
    file = tmp_path / "settings.toml"
    file.write_text(f"scope = '{tmp_path / 'strange.py'}:allocation'")
    assert main(["prune", "--config", str(file), "--out", str(tmp_path / "run")]) == 2
    assert "the settings import code: allocate = " in capsys.readouterr().err
    assert not (tmp_path / "imported").exists()
