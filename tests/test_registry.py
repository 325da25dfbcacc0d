"""Names are registered once: each has its function, what it takes is said, and packages and users add their own."""

from __future__ import annotations

import importlib.metadata
import inspect
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest
from lthfunc_cli.main import main
from torch import nn

import lthfunc as lf
from docs.lists import names
from lthfunc.catalog import REGISTRIES
from lthfunc.catalog.pruning import ALLOCATIONS, SCORES, STRUCTURES
from lthfunc.catalog.training import LOSSES, METRICS, OPTIMIZERS
from lthfunc.errors import UserError
from lthfunc.experiments.config import SETTINGS
from lthfunc.experiments.resolve import resolved
from lthfunc.experiments.schema import from_mapping
from lthfunc.registry import Entry, Offered, Registry, imported


@pytest.mark.parametrize("kind", REGISTRIES)
def test_every_name_has_its_function(kind: str) -> None:
    for name, entry in REGISTRIES[kind].items():
        assert kind == "recipes" or imported(entry.target) is not None, name
        assert entry.about, name
        assert all(each in SETTINGS for each in entry.takes), name
        if entry.pattern is not None:
            example = (entry.example or name) + ("3" if entry.example.endswith(":") else "")
            assert REGISTRIES[kind].find(example) is not None, name


def test_what_an_optimiser_takes_is_what_its_function_has() -> None:
    for name, entry in OPTIMIZERS.items():
        assert {*entry.takes} <= {*inspect.signature(OPTIMIZERS.load(name)).parameters}, name


def test_no_name_is_imported_for_a_table() -> None:
    code = "import sys; from lthfunc.catalog import REGISTRIES; REGISTRIES['scores']; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def added(monkeypatch: pytest.MonkeyPatch, *points: tuple[str, str, str]) -> None:
    """Entry points (kind, name, value), as if packages that add them were installed."""
    found = EntryPoints(EntryPoint(name, value, f"lthfunc.{kind}") for kind, name, value in points)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **given: found.select(**given))


def test_installed_packages_add_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "package_of_scores.py").write_text(
        "def small(params, masks): return {name: -params[name].abs() for name in masks}\n"
        "def by_loss(loss, batches): return small\n"
    )
    (tmp_path / "broken_package.py").write_text("import no_such_module_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    added(
        monkeypatch, ("scores", "small", "package_of_scores:small"), ("scores", "by-loss", "package_of_scores:by_loss"),
        ("scores", "broken", "broken_package:score"), ("scores", "twice", "package_of_scores:small"),
        ("scores", "twice", "package_of_scores:by_loss"), ("scores", "magnitude", "broken_package:score"),
    )  # fmt: skip
    assert SCORES.known()[-4:] == ["broken", "by-loss", "small", "twice"]
    assert SCORES.load("magnitude") is lf.magnitude  # the library's own
    assert resolved(from_mapping({"score": "small"})).score == "small"
    small = imported("package_of_scores:small")
    state = lf.init(lf.from_module(nn.Linear(3, 2)))
    for name in ("small", "by-loss"):
        made = SCORES.make(name, Offered(loss=lambda: None, batches=list), dict)
        assert lf.same_bits(made(state.params, state.masks), small(state.params, state.masks))
    with pytest.raises(UserError, match=r"^--score: 'broken' of .* cannot be imported .*no_such_module_at_all"):
        SCORES.load("broken")
    with pytest.raises(UserError, match=r"^--score: several installed packages have a 'twice': .*small and .*by_loss"):
        SCORES.load("twice")
    with pytest.raises(UserError, match=r"^--score: unknown name 'smal'; did you mean 'small'"):
        SCORES.check("smal")


def test_an_installed_control_is_trained_drawn_and_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "package_of_controls.py").write_text("def same(pruned, anchor): return pruned\n")
    monkeypatch.syspath_prepend(tmp_path)
    added(monkeypatch, ("controls", "same", "package_of_controls:same"))
    run = tmp_path / "run"
    words = "prune --steps 2 --rounds 1 --engine eager --control same --out"
    assert main([*words.split(), str(run)]) == 0
    assert (run / "accuracy_vs_density.png").is_file()
    assert main(["report", str(run), "--no-figures"]) == 0
    assert "<td>same</td>" in (run / "report.html").read_text()


def test_a_function_of_ones_own_is_made_of_what_is_offered(tmp_path: Path) -> None:
    file = tmp_path / "mine_for_registries.py"
    file.write_text(
        "def itself(params, masks): return dict(masks)\n"
        "def made(seed, lr=1.0): return lambda params, masks: {'seed': seed, 'lr': lr}\n"
        "def any_of(*anything): return {}\n"
        "def wrong(params, masks): return 1\n"
        "def fails(seed): return seed / 0\n"
    )
    asked = []
    offered = Offered(seed=lambda: 7, lr=lambda: 0.5, batches=lambda: asked.append("batches"))

    def make(name: str) -> Any:
        return SCORES.make(f"{file}:{name}", offered, dict)({"a": 1}, {"m": 2})

    assert (make("itself"), make("made"), make("any_of")) == ({"m": 2}, {"seed": 7, "lr": 0.5}, {})
    assert asked == []  # nothing is worked out that isn't asked for
    with pytest.raises(UserError, match=r"^--score: .*wrong' returned an int, not a dict"):
        make("wrong")
    with pytest.raises(UserError, match=r"^--score: .*fails' called with seed=7 fails.*division by zero"):
        make("fails")


def test_names_hold_numbers_and_settings() -> None:
    assert [STRUCTURES.find(name) is not None for name in ("2:4", "16x8", "units", "2-4")] == [True, True, True, False]
    assert METRICS.find("top-5") == (METRICS["top-K"], {"count": 5})
    fixed, families = METRICS.spelled()
    assert {"auto", "accuracy", "r2"} < {*fixed}
    assert families == ["^top-([1-9]\\d*)$"]
    assert (LOSSES.takes("cross-entropy"), LOSSES.takes("mse"), LOSSES.takes("a:b")) == (("label_smoothing",), (), ())
    assert ALLOCATIONS.make("uniform", {"floor": 3, "layer_rate": {}}) is not None
    closed = Registry("things", "--thing", {"one": Entry("a:b", "a thing")}, own=False)
    with pytest.raises(UserError, match=r"^--thing: unknown name 'a.b:c'"):
        closed.check("a.b:c")
    assert (closed.about("one"), closed.offers, closed.described) == ("a thing", ("one",), "one (a thing)")


def test_the_page_of_names_is_up_to_date() -> None:
    written = Path(__file__).parents[1] / "docs" / "reference" / "names.md"
    assert names() == written.read_text(), "python docs/lists.py"
