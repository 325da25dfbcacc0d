"""The benchmark of a step's instructions says what a program has; its figures are not judged here."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from lthfunc_cli.main import main

from lthfunc.sparse.kernels import build

sparse = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))


@sparse
def test_the_instructions_of_a_step_are_timed(tmp_path: Path, capsys: Any) -> None:
    measured = tmp_path / "instructions.json"
    options = ["--network", "lenet300", "--density", "0.05", "--repeats", "2", "--json", str(measured)]
    assert main(["benchmark", "instructions", *options]) == 0
    found = {item["variant"]: item for item in json.loads(measured.read_text())["records"]}
    assert {"load_inputs", "products", "weight_gradients", "cross_entropy", "adam", "a step"} <= set(found)
    assert all(item["median"] > 0 and item["repeats"] == 2 and item["unit"] == "ms" for item in found.values())
    # Three layers, and the gradients of what the last two read.
    shown = capsys.readouterr().out
    assert re.search(r"^ products +5 ", shown, re.MULTILINE)
    assert "lenet300, batch 60, fp32, at 0.05" in shown


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--repeats", "0"], "--repeats: invalid value 0 (expected a whole number of at least 1)"),
        (["--network", "unet"], "--network: unknown name 'unet'"),
        (["--precision", "tf32"], "--precision: invalid value 'tf32' (expected fp32 or bf16)"),
        (["--density", "2"], "--density: invalid value 2.0 (expected a number in (0, 1])"),
    ],
)
def test_what_cannot_be_measured_is_refused(options: list[str], words: str, capsys: Any) -> None:
    assert main(["benchmark", "instructions", *options]) == 2
    assert words in capsys.readouterr().err
