"""The page on optimisers made of parts: its examples run, its table has every part."""

from __future__ import annotations

import re

import pytest
from conftest import ROOT
from documentation import blocks

import lthfunc as lf
from lthfunc.catalog.training import OPTIMIZER_PARTS
from lthfunc.experiments.config import SETTINGS
from lthfunc.registry import imported

PAGE = "docs/how-to/optimizers.md"


def test_the_examples_run_as_printed(capsys: pytest.CaptureFixture[str]) -> None:
    for code in blocks(PAGE, "python"):
        names: dict[str, object] = {}
        exec(compile(code, PAGE, "exec"), names)
        assert isinstance(names["optimizer"], lf.Optimizer)
    share, left = re.findall(r"([\d.]+)%", capsys.readouterr().out)
    assert float(share) > 80
    assert left == "50"


def test_the_table_has_every_part_and_its_option() -> None:
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)\(.*?\)` \| (.*?) \|", text, re.MULTILINE))
    made = {name for name in lf.__all__ if getattr(getattr(lf, name), "__annotations__", {}).get("return") == "Part"}
    assert {*rows} == made
    for setting, target in OPTIMIZER_PARTS.items():
        assert rows[imported(target).__name__] == f"`{SETTINGS[setting].option}`"
