"""The page on trainers does what it says: its scripts have fewer than twenty lines, and run, here on fewer steps."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from documentation import blocks

import lthfunc as lf
from lthfunc.errors import UserError

#: Of each script: a package that it needs, and what makes it shorter.
SCRIPTS = (
    ("lightning", {"epochs=10": "epochs=1", "max_epochs=40": 'max_epochs=4, accelerator="cpu", logger=False'}),
    ("transformers", {"steps=200": "steps=3", "20, 200": "1, 3", "max_steps=800": "max_steps=12, use_cpu=True"}),
    ("accelerate", {"range(40)": "range(4)", "// 10": "// 1", "Accelerator()": "Accelerator(cpu=True)"}),
    ("timm", {"num_epochs=10": "num_epochs=1", "// 10": "// 1"}),
)


@pytest.mark.parametrize(("package", "shorter", "script"), [
    (*each, script) for each, script in zip(SCRIPTS, blocks("docs/how-to/trainers.md", "python"), strict=True)
], ids=[package for package, _ in SCRIPTS])  # fmt: skip
def test_scripts_run_as_printed(
    package: str, shorter: dict[str, str], script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in (package, "accelerate") if package == "transformers" else (package,):
        pytest.importorskip(each, reason=f"the package {each} is not installed")
    assert package in script
    assert len([line for line in script.splitlines() if line.strip()]) < 20
    for long, short in shorter.items():
        assert long in script
        script = script.replace(long, short)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "script"}
    exec(compile(script, "trainers.md", "exec"), names)
    attached = names["pruning"].attached if "pruning" in names else names["attached"]
    assert attached.round == 3
    assert lf.density(attached.masks) == pytest.approx(1 / 8, abs=1e-3)


@pytest.mark.parametrize("package", ["lightning", "transformers"])
def test_a_missing_package_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, f"lthfunc.loops.{package}", None)
    with pytest.raises(UserError, match=rf"needs (?i:{package}).*\(pip install 'lthfunc\[trainers\]'\)"):
        getattr(lf, f"{package}_callback")(lf.prune(fraction=0.5), steps=1)
