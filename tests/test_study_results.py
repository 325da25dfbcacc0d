"""A study's costs and tests: FLOPs reckoned by hand, the front, and p-values by their formulas."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import run
from hypothesis import given, strategies as st
from method_plans import plan_for
from scipy import special
from small import settings

import lthfunc as lf
from lthfunc.experiments.methods import mest
from lthfunc.experiments.methods.during_training import growth_scores
from lthfunc.experiments.records import spread
from lthfunc.reports.charts import Bars
from lthfunc.reports.method_costs import (
    CostPoint,
    cost_charts,
    front,
    inference_flops,
    network_flops,
    takes_dense_gradients,
    training_flops,
)
from lthfunc.reports.method_tests import _corrected, compared_to, difference_in_words
from lthfunc.reports.methods import MethodPoint, method_cost_charts, method_picture, method_table, ranked
from lthfunc.reports.page.study_page import write_study_page
from lthfunc.reports.tables import ACCURACY
from lthfunc.training.mask_updates import UpdateContext
from lthfunc.training.trainer import Trainer
from lthfunc.trees.flops import flops_by_weight

SHORT = ["--steps", "8", "--batch-size", "40", "--engine", "eager"]
DIGITS = lf.data.load("digits")
#: Weights, and FLOPs: a product and a sum for each.
WEIGHTS = {"fc1.weight": 64 * 300, "fc2.weight": 300 * 100, "fc3.weight": 100 * 10}
DENSE = 2 * sum(WEIGHTS.values())


def record(
    densities: dict[str, float], *, begun: int = 0, end: int = 100, updates: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    layers = {name: {"total": WEIGHTS[name], "density": each} for name, each in densities.items()}
    return {"round": 1, "layers": layers, "curve": [[begun, 0, 0], [end, 0, 0]], "final_step": end,
            **({"updates": updates} if updates else {})}  # fmt: skip


def update(step: int, densities: dict[str, float], dropped: int = 0, grown: int = 0) -> dict[str, Any]:
    """All of what is dropped and grown is in the first layer."""
    first = {name: name == "fc1.weight" for name in WEIGHTS}
    layers = {
        name: [round(densities[name] * WEIGHTS[name]), dropped * first[name], grown * first[name]] for name in WEIGHTS
    }
    return {"step": step, "layers": layers, "masks_sha256": ""}


def spent(method: str, item: dict[str, Any], *, dense_updates: bool = False, **settings: Any) -> float:
    """FLOPs of a training, in units of a pass over all examples of a dense batch."""
    model = lf.models.lenet300((1, 8, 8))
    plan = plan_for(method, model, DIGITS, steps=100, eval_every=50, **settings)
    flops = training_flops(network_flops(plan), plan, item, dense_updates=dense_updates)
    return flops / (3 * plan.trainer.batch_size * DENSE)


def same(density: float) -> dict[str, float]:
    return dict.fromkeys(WEIGHTS, density)


def test_flops_of_networks_are_their_products() -> None:
    plan = plan_for("imp", lf.models.lenet300((1, 8, 8)), DIGITS, steps=10, eval_every=10)
    found = network_flops(plan)
    assert found.layers == {name: 2 * each for name, each in WEIGHTS.items()}
    assert found.others == 0
    only_first = {"fc1.weight": 0.5, "fc2.weight": 0.0, "fc3.weight": 1.0}
    assert inference_flops(found, record(only_first)) == 64 * 300 + 2 * 1000
    model = lf.models.conv2((1, 8, 8))
    plan = plan_for("imp", model, DIGITS, steps=10, eval_every=10)
    shapes = {name: tuple(each.shape) for name, each in lf.init(model).params.items()}
    found = network_flops(plan)
    assert {*found.layers} == {*model.prunable}
    assert found.layers["fc1.weight"] == 2 * math.prod(shapes["fc1.weight"])
    assert found.layers["features.0.weight"] == 2 * math.prod(shapes["features.0.weight"]) * 64  # padded: a pixel each


def test_flops_of_a_module_are_shared_among_its_weights() -> None:
    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Parameter(torch.ones(6, 4)), torch.nn.Parameter(torch.ones(2, 6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.a.T @ self.b.T

    network = torch.nn.Sequential(Twice(), torch.nn.Linear(2, 5))
    shares, total = flops_by_weight(network, (4,), {"0.a": 24, "0.b": 12, "1.weight": 10})
    assert shares == {"0.a": 48, "0.b": 24, "1.weight": 20}
    assert total == sum(shares.values())


def test_flops_of_trainings_follow_the_masks_of_each_step() -> None:
    assert spent("imp", record(same(0.25))) == pytest.approx(100 * 0.25)
    assert spent("imp", record(same(0.25), begun=40)) == pytest.approx(60 * 0.25)
    gradual = record(same(0.2), updates=[update(20, same(0.5)), update(60, same(0.2))])
    gradual["updates"][0]["layers"] = {name: [each // 2, each - each // 2, 0] for name, each in WEIGHTS.items()}
    assert spent("gradual", gradual, density=0.2) == pytest.approx(20 * 1 + 40 * 0.5 + 40 * 0.2, rel=1e-3)
    exchanged = record(same(0.1), updates=[update(step, same(0.1), 50, 50) for step in (10, 20, 30)])
    assert spent("set", exchanged, density=0.1) == pytest.approx(100 * 0.1)
    assert spent("rigl", exchanged, density=0.1, dense_updates=True) == pytest.approx(100 * 0.1 + 3)
    assert spent("ste", record(same(0.1)), density=0.1) == pytest.approx(100)


def test_mest_takes_a_dense_gradient_whatever_it_grows_by(monkeypatch: pytest.MonkeyPatch) -> None:
    takes = {name: takes_dense_gradients(settings(method=name)) for name in ("imp", "set", "rigl", "mest")}
    assert takes == {"imp": False, "set": False, "rigl": True, "mest": True}
    assert not takes_dense_gradients(settings(method="mest", gradient_weight=0.0))
    scored = list[Any]()

    def score(trainer: Trainer, growing: Any, *about: Any) -> Any:
        scored.append(growing)
        return growth_scores(trainer, growing, *about)

    monkeypatch.setattr(mest, "growth_scores", score)
    state, now = lf.init(model := lf.models.lenet300((1, 8, 8))), UpdateContext(0, 1, last=False)
    for weight in (0.0, 0.01):
        scored.clear()
        plan = plan_for("mest", model, DIGITS, steps=10, eval_every=5, gradient_weight=weight)
        updates = plan.updates[0]
        assert updates is not None
        updates.change(state, now)
        assert len(scored) == (2 if weight else 1)


def test_a_method_without_a_result_at_the_lowest_density_is_last(tmp_path: Path) -> None:
    at = [("few", 0.5, 0.9), ("worse", 0.5, 0.6), ("worse", 0.1, 0.5), ("better", 0.1, 0.8)]
    points = [MethodPoint(name, asked, 1, asked, {0: value}, spread([value]), 1.0, 1.0) for name, asked, value in at]
    assert ranked(points) == ["better", "worse", "few"]
    picture = method_picture(points, "title")
    write_study_page(tmp_path / "a.html", "title", points, "better", [], picture, method_cost_charts(points))
    assert "few" in (tmp_path / "a.html").read_text()
    assert method_table(points, 80).row_count == 3


def test_the_dense_network_alone_is_a_dot() -> None:
    picture = method_picture([MethodPoint("dense", 1.0, 1, 1.0, {0: 0.9}, spread([0.9]), 1.0, 1.0)], "title")
    assert isinstance(picture, Bars)
    assert picture.labels == ["dense"]
    assert [len(values) for _, values, _ in picture.groups] == [1]


@given(st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9)), max_size=12))
def test_no_point_beats_one_of_the_front(points: list[tuple[float, float]]) -> None:
    best = front(points)
    for cost, error in best:
        assert not any(c <= cost and e <= error and (c, e) != (cost, error) for c, e in points)
    for cost, error in points:
        assert any(c <= cost and e <= error for c, e in best)
    assert best == sorted(best)


def test_charts_are_of_the_costs_that_are_known() -> None:
    points = [
        CostPoint("a", 0.5, 3.0, {"training_flops": 8.0, "kwh": 0.002}),
        CostPoint("a", 0.2, 5.0, {"training_flops": 4.0, "kwh": 0.001}),
        CostPoint("b", 0.2, 4.0, {"training_flops": 5.0, "kwh": None}),
        CostPoint("b", 0.5, 6.0, {"training_flops": 9.0, "kwh": None}),
    ]
    flops, energy = cost_charts(points, ["b", "a", "c"], "test error (%)")
    assert (flops.key, energy.key) == ("methods_training_flops", "methods_kwh")
    assert [(each.name, each.x, each.y) for each in flops.series] == [
        ("b", [9.0, 5.0], [6.0, 4.0]), ("a", [8.0, 4.0], [3.0, 5.0]),
        ("no other is better in both", [4.0, 5.0, 8.0], [5.0, 4.0, 3.0]),
    ]  # fmt: skip
    assert [(each.name, each.x) for each in energy.series] == [
        ("a", [2.0, 1.0]), ("no other is better in both", [1.0, 2.0])
    ]  # fmt: skip
    assert flops.caption == "A line for each of the methods, over its densities."
    (alone,) = cost_charts(points[1:3], ["b", "a"], "test error (%)")[:1]
    assert alone.caption == "A point for each of the methods."


def test_benjamini_and_hochberg_s_own_example() -> None:
    """Their section 3.2: four of fifteen hypotheses of a trial are rejected at 5 %, where Bonferroni rejects three."""
    ps = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528,
          0.7590, 1.0]  # fmt: skip
    shuffled = ps[7:] + ps[:7]
    found = dict(zip(shuffled, _corrected(shuffled), strict=True))
    assert [p for p, each in found.items() if each < 0.05] == ps[:4]
    assert found[0.0095] == pytest.approx(0.0095 * 15 / 4)
    assert found[0.0278] == pytest.approx(min(p * 15 / (rank + 1) for rank, p in enumerate(ps) if rank >= 5))


def two_sided(differences: list[float]) -> float:
    """p of Student's test, by the incomplete beta function."""
    n = len(differences)
    t = statistics.fmean(differences) / (statistics.stdev(differences) / math.sqrt(n))
    return float(special.betainc((n - 1) / 2, 0.5, (n - 1) / (n - 1 + t * t)))


def test_methods_are_tested_on_shared_seeds_at_equal_densities() -> None:
    base = {0: 0.90, 1: 0.91, 2: 0.93}
    values = {
        ("imp", 0.5): base, ("imp", 0.1): {0: 0.8, 1: 0.82, 2: 0.81},
        ("snip", 0.5): {0: 0.89, 1: 0.905, 2: 0.90, 3: 0.1}, ("snip", 0.1): {0: 0.7, 1: 0.74, 2: 0.71},
        ("set", 0.1): {0: 0.79}, ("erk", 0.2): base, ("copy", 0.5): base,
    }  # fmt: skip
    tests = {(each.method, each.density): each for each in compared_to("imp", values)}
    assert {*tests} == {("snip", 0.5), ("snip", 0.1), ("set", 0.1), ("copy", 0.5)}
    ps = sorted([two_sided([-0.01, -0.005, -0.03]), two_sided([-0.1, -0.08, -0.1])])
    low, high = tests["snip", 0.1], tests["snip", 0.5]
    assert (low.paired.p, high.paired.p) == pytest.approx(tuple(ps))
    assert (low.corrected, high.corrected) == pytest.approx((min(2 * ps[0], ps[1]), ps[1]))
    assert high.paired.seeds == 3
    assert (tests["set", 0.1].corrected, tests["copy", 0.5].corrected) == (None, None)
    assert difference_in_words(low, ACCURACY) == f"-9.33, p = {low.corrected:.3f}"
    assert difference_in_words(tests["set", 0.1], ACCURACY) == "-1.00"


def test_a_study_ends_with_tests_costs_and_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    study = ["methods", "--densities", "0.5,0.2", "--rounds", "2", *SHORT, "--out", "study"]
    for name in ("dense", "rigl", "snip"):
        study += ["--method", name]
    assert run(*study, "--baseline", "imp") == 2
    assert "--baseline: invalid value 'imp' (expected one of the methods compared: dense, rigl, snip)" in (
        capsys.readouterr().err
    )
    assert not list(Path().rglob("*.safetensors"))
    assert run(*study, "--baseline", "snip", "--replicates", "2") == 0
    out = capsys.readouterr().out
    assert "differences to snip, and p of paired t-tests, corrected for their number" in out
    for name in ("methods.png", "methods-costs.png"):
        assert Path("study", name).exists()
        assert name in out
    page = Path("study/methods.html").read_text()
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert {*data["charts"]} == {"methods", "methods_training_flops", "methods_inference_flops", "methods_seconds"}
    assert "difference to snip" in page
    assert run(*study, "--replicates", "2", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    (baseline,) = {each["baseline"] for each in found["tests"]}  # the best
    assert baseline in {"rigl", "snip"}
    assert {(each["method"], each["at"]) for each in found["tests"]} == {
        (method, at) for method in {"dense", "rigl", "snip"} - {baseline} for at in (0.5, 0.2)
    }
    by_key = {(each["method"], each["at"]): each for each in found["results"]}
    for each in found["tests"]:
        theirs = by_key[baseline, each["at"]]
        mine = by_key[each["method"], 1.0 if each["method"] == "dense" else each["at"]]
        assert each["difference"] == pytest.approx(mine["test_accuracy"] - theirs["test_accuracy"])
    assert by_key["snip", 0.2]["training_flops"] == pytest.approx(
        3 * 40 * 8 * by_key["snip", 0.2]["inference_flops"]
    )  # fmt: skip
    assert by_key["rigl", 0.2]["training_flops"] > by_key["snip", 0.2]["training_flops"]
