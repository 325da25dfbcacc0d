"""The benchmark of networks without whole groups runs and writes what it promises."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from lthfunc_cli.main import main

from benchmarks.groups import _MAKE, VisionTransformer


def test_smaller_networks_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    small = partial(VisionTransformer, width=32, blocks=1)
    monkeypatch.setitem(_MAKE, "vit", small)
    monkeypatch.setattr("benchmarks.groups.SCORES", ("magnitude",))
    monkeypatch.setattr("benchmarks.groups._SCORED", 1)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # the peer, whose pruning takes long
    measured = tmp_path / "groups.json"
    options = [
        "--network",
        "vit",
        "--steps",
        "1",
        "--tuning",
        "1",
        "--left",
        "0.4",
        "--eager",
        "--repeats",
        "2",
        "--multiple",
        "8",
    ]
    assert main(["benchmark", "groups", *options, "--json", str(measured)]) == 0
    dense, ours = json.loads(measured.read_text())["records"]
    assert (dense["variant"], ours["variant"]) == ("dense", "lthfunc, magnitude")
    assert 0.35 < ours["FLOPs"] / dense["FLOPs"] < 0.45
    assert ours["parameters"] < 0.45 * dense["parameters"]
    assert ours["repeats"] == 2
    assert ours["multiple"] == 8
    assert "lthfunc, magnitude" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--network", "nothing"], "--network: unknown name 'nothing'"),
        (["--left", "1"], "--left: invalid value 1"),
        (["--multiple", "0"], "--multiple: invalid value 0"),
        (
            ["--multiple", "9999", "--network", "vit"],
            "--multiple: of vit, whole groups in multiples of 9999 leave at least 1",
        ),
        (["--left", "1e-6", "--network", "vit"], "--left: of vit, whole groups leave at least "),
        (["--dataset", "nothing"], "--dataset: unknown name 'nothing'"),
        (["--tuning", "0"], "--tuning: invalid value 0"),
    ],
)
def test_what_it_cannot_measure_is_refused(
    options: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("benchmarks.groups.lf.train", lambda *_, **__: pytest.fail("something was trained"))
    assert main(["benchmark", "groups", *options]) == 2
    assert words in capsys.readouterr().err
