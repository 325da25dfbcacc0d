"""Trackers are told what the records say, whole or in two sittings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import run

from lthfunc.catalog.deployment import TRACKERS
from lthfunc.runs.folder import read_run

SMALL = ["--rounds", "1", "--steps", "30", "--eval-every", "10", "--replicates", "2", "--control", "reinit"]


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Validation losses by training, but for the first point, which is measured before any step."""
    found = {}
    for item in read_run(folder)[2]:
        suffix = "" if item["variant"] == "ticket" else f"-{item['variant']}"
        points = [(point[0], point[2]) for point in item["curve"] if point[0] > 0]
        found[f"seed{item['seed']}/round{item['round']:02d}{suffix}"] = points
    return found


def test_tensorboard_reads_every_curve(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    assert run("prune", *SMALL, "--tensorboard", "--out", folder) == 0
    wanted = curves(folder)
    assert len(wanted) == 6
    for name, points in wanted.items():
        events = EventAccumulator(str(folder / "tensorboard" / name))
        events.Reload()
        assert [(each.step, each.value) for each in events.Scalars("val_loss")] == [
            (step, pytest.approx(loss)) for step, loss in points
        ]
    events = EventAccumulator(str(folder / "tensorboard" / "rounds" / "seed1-reinit"))
    events.Reload()
    (density,) = events.Scalars("density")
    assert (density.step, density.value) == (1, pytest.approx(0.8))
    assert run("verify", folder) == 0


def test_mlflow_has_a_run_with_every_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "run"
    assert run("prune", *SMALL, "--mlflow", "--out", folder) == 0
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("lthfunc")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["arch"] == "lenet300"
    for name, points in curves(folder).items():
        history = client.get_metric_history(found.info.run_id, f"{name}/val_loss")
        assert [(each.step, each.value) for each in history] == points
    assert run("resume", folder) == 0  # the same run again
    assert len(client.search_runs([experiment.experiment_id])) == 1


def test_wandb_keeps_a_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "run"
    assert run("prune", *SMALL, "--wandb", "--out", folder) == 0
    (store,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    content = store.read_bytes()
    for name in curves(folder):
        assert f"{name}/val_loss".encode() in content


def test_a_tracker_that_cannot_be_had_is_told_before_any_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name in TRACKERS else real(name, *rest)
    )
    for name in TRACKERS:
        assert run("prune", "--steps", 5, f"--{name}", "--out", tmp_path / name) == 2
        assert f"--{name}: needs the package {name} (pip install 'lthfunc[{name}]')" in capsys.readouterr().err
        assert not (tmp_path / name).exists()


def test_side_by_side_each_training_is_told_its_own_points(few_digits: Any) -> None:
    import lthfunc as lf
    from lthfunc.training.loop import fit_together

    model = lf.models.lenet300((1, 8, 8))
    trainer = lf.make_trainer(model, few_digits, optimizer=lf.adam(1e-3), batch_size=20)
    told: list[Any] = []
    fits = fit_together(
        trainer, [lf.init(model, seed) for seed in (0, 1)], seeds=[0, 1], until=6, eval_every=3,
        observe=lambda step, points: told.append(points),
    )  # fmt: skip
    points = [each for each in told if each is not None]
    assert [[each[number] for each in points] for number in (0, 1)] == [list(fit.curve[1:]) for fit in fits]
    assert fits[0].curve[1] != fits[1].curve[1]
    assert json.dumps([list(each) for each in points[0]])
