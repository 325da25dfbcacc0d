"""Records, summaries and lines between networks, by hand."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from small import NET, data, state_of
from torch import nn

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.experiments import connectivity
from lthfunc.experiments.connectivity import LinearPath, _at_each, between
from lthfunc.experiments.iterative import Round
from lthfunc.experiments.metrics import metric_scale
from lthfunc.experiments.records import record, search_energy, summarize
from lthfunc.training.evaluation import Evaluation
from lthfunc.training.results import BestNetwork, Fit, Point
from lthfunc.trees import ops
from lthfunc.trees.rng import key
from lthfunc.trees.types import Ticket


def a_round(number: int, variant: str, density: float) -> Round:
    _, state = state_of()
    sparse = lf.prune(density=density)(state)
    points = (Point(0, math.nan, 2.0, 0.1), Point(5, 1.5, 1.25, 0.5), Point(9, 1.0, 1.75, 0.625))
    chosen = BestNetwork(points[1], sparse.params, sparse.buffers)
    return Round(
        number,
        variant,
        Ticket(sparse.params, {}, sparse.masks),
        Fit(sparse, chosen, points),
        Evaluation(1.5, 0.375),
        state,
    )


def test_a_record_is_one_training_as_plain_values() -> None:
    item = a_round(2, "reinit", 0.4)
    found = record(item, replicate=3, seed=11, seconds=1.23456, metric="top-5", energy={"kwh": 1})
    layers = {name: (int(mask.sum()), mask.numel()) for name, mask in item.start.masks.items()}
    assert found == {
        "replicate": 3, "seed": 11, "round": 2, "variant": "reinit", "metric": "top-5", "kept": 18, "total": 45,
        "density": 0.4, "layers": {k: {"kept": n, "total": t, "density": n / t} for k, (n, t) in layers.items()},
        "early_stop_step": 5, "val_loss": 1.25, "val_accuracy": 0.5, "test_loss": 1.5, "test_accuracy": 0.375,
        "final_step": 9, "final_val_loss": 1.75, "final_val_accuracy": 0.625, "seconds": 1.235,
        "curve": [[0, None, 2.0, 0.1], [5, 1.5, 1.25, 0.5], [9, 1.0, 1.75, 0.625]], "energy": {"kwh": 1},
    }  # fmt: skip
    plain = record(item, replicate=0, seed=0, seconds=1.0)
    assert plain["metric"] == "accuracy"
    assert "energy" not in plain


def test_a_summary_is_means_and_spreads_over_replicates() -> None:
    items = [
        record(a_round(1, "ticket", 0.4), replicate=r, seed=r, seconds=2.0 + r, metric="m.py:mine") for r in (0, 1)
    ]
    for r, item in enumerate(items):
        item.update(kept=10 + r, density=0.25 + r / 2, val_accuracy=0.5 + r / 4, test_accuracy=0.25 + r / 2)
        item.update(early_stop_step=4 + 2 * r, layers={"w": {"density": 0.5 + r / 4}})
        item["energy"] = {"preparation": {"kwh": 1.0}, "training": {"kwh": 2.0 + r}, "evaluation": {"kwh": 9.0}}
    (row,) = summarize(items)
    half = 0.5**0.5
    assert (row.round, row.variant, row.replicates, row.kept, row.total) == (1, "ticket", 2, 10.5, 45)
    assert (row.density, row.layers, row.seconds) == (0.5, {"w": 0.625}, 2.5)
    assert row.val_accuracy == pytest.approx((0.625, 0.25 * half))
    assert row.test_accuracy == pytest.approx((0.5, 0.5 * half))
    assert row.early_stop_step == pytest.approx((5, 2 * half))
    assert row.energy == pytest.approx((3.5, half))
    assert (row.metric, row.measured) == ("m.py:mine", "mine")
    assert search_energy(items[1]) == 4.0
    del items[1]["energy"]
    assert summarize(items)[0].energy is None
    del items[0]["metric"]
    assert summarize(items)[0].metric == "accuracy"
    assert metric_scale("top-5").head == "top-5 %"


def test_a_point_between_two_networks() -> None:
    model, first = state_of()
    second = lf.init(model, 1)
    first = first._replace(buffers={"mean": torch.tensor([1.0]), "count": torch.tensor(3)})
    second = second._replace(buffers={"mean": torch.tensor([3.0]), "count": torch.tensor(8)})
    params, buffers = between(first, second, torch.tensor(0.25, dtype=torch.float64))
    for name, leaf in params.items():
        torch.testing.assert_close(leaf, 0.75 * first.params[name] + 0.25 * second.params[name])
        assert leaf.dtype == torch.float32
    assert (float(buffers["mean"]), int(buffers["count"])) == (1.5, 3)


class Scaled(nn.Sequential):
    """Scales its inputs, where they are or as new ones."""

    def __init__(self, writes: bool) -> None:
        super().__init__(*copy.deepcopy(NET))
        self.scale, self._writes = nn.Parameter(torch.ones(6)), writes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scaled = x.add_(1).mul_(self.scale) if self._writes else (x + 1) * self.scale
        out: torch.Tensor = super().forward(scaled)  # type: ignore[no-untyped-call]
        return out


def test_every_example_counts_on_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connectivity, "_CHUNK", 7)
    model, first = state_of()
    second, numbers = lf.init(model, 1), data()
    found = lf.line(model, first, second, numbers.test, points=3)
    assert found.alphas.tolist() == [0.0, 0.5, 1.0]
    for place, alpha in enumerate(found.alphas):
        params, _ = between(first, second, alpha)
        outputs = torch.func.functional_call(NET, params, (numbers.test.x,))
        expected = nn.functional.cross_entropy(outputs, numbers.test.y)
        assert float(found.loss[place]) == pytest.approx(float(expected), rel=1e-5)
        hits = float((outputs.argmax(1) == numbers.test.y).double().mean())
        assert float(found.error[place]) == pytest.approx(1 - hits)
    with pytest.raises(UserError, match=r"^points: invalid value 2 \(expected a whole number of at least 3"):
        lf.line(model, first, second, numbers.test, points=2)
    writing, plain = (lf.from_module(Scaled(writes), init=lf.as_built) for writes in (True, False))
    ends = lf.init(writing), lf.init(writing)._replace(params={**second.params, "scale": torch.full((6,), 3.0)})
    ends = ends[0]._replace(params={**first.params, "scale": torch.ones(6)}), ends[1]
    assert lf.line(writing, *ends, numbers.test, points=3).loss.tolist() == pytest.approx(
        lf.line(plain, *ends, numbers.test, points=3).loss.tolist()
    )
    evenly = lf.line(model, first, second, numbers.test).alphas
    assert evenly.tolist() == torch.linspace(0, 1, 11, dtype=torch.float64).tolist()


def test_a_barrier_is_the_highest_error_above_the_mean_of_the_ends() -> None:
    line = LinearPath(torch.linspace(0, 1, 4), torch.tensor([0.1, 0.7, 0.6, 0.3]), torch.zeros(4))
    assert line.barrier == pytest.approx(0.5)


def test_networks_that_vmap_cannot_take_are_measured_in_turn() -> None:
    def step(params: Any, buffers: Any) -> Any:
        return {"loss": params["w"] * (2 if float(params["w"]) > 1 else 5) + buffers["b"], "accuracy": buffers["b"]}

    found = _at_each(step, {"w": torch.tensor([1.0, 2.0, 3.0])}, {"b": torch.tensor([10.0, 20.0, 30.0])})
    assert found["loss"].tolist() == [15.0, 24.0, 36.0]
    assert found["accuracy"].tolist() == [10.0, 20.0, 30.0]
    calls: list[Any] = []

    def draws(params: Any, buffers: Any) -> Any:
        calls.append(params)
        return {"loss": torch.rand(())}

    drawn = _at_each(draws, {"w": torch.zeros(4)}, {})
    assert len(calls) == 1  # what draws takes one pass too
    assert len(set(drawn["loss"].tolist())) == 4


def test_copies_start_from_one_training_at_each_k() -> None:
    """By hand: to k with the seed's order, then two copies with orders of their own."""
    model, numbers = lf.from_module(NET), data()
    trainer = lf.make_trainer(model, numbers, optimizer=lf.sgd(0.1), batch_size=5)
    start = lf.init(model, 0)
    found = lf.instability(model, trainer, start, [3, 0], steps=6, seed=4, points=3)
    assert [item.k for item in found] == [0, 3]
    for item in found:
        state = lf.take_steps(trainer, start, seed=4, until=item.k)[0] if item.k else start
        pair = [
            lf.take_steps(trainer, state, seed=key(4, "instability", copy) % 2**31, until=6)[0] for copy in range(2)
        ]
        expected = lf.line(model, pair[0], pair[1], numbers.test, numbers.scale, 3)
        assert torch.equal(item.line.loss, expected.loss)
        assert not lf.same_bits(pair[0].params, pair[1].params)
    late = lf.take_steps(trainer, start, seed=4, until=2)[0]
    lf.instability(model, trainer, late, [2], steps=4, seed=0, points=3)
    for k in (1, 4):
        with pytest.raises(UserError, match=rf"^--at: invalid value {k} \(expected a step from 2 to 3"):
            lf.instability(model, trainer, late, [k], steps=4, seed=0, points=3)
    assert ops.same_bits(late, lf.take_steps(trainer, start, seed=4, until=2)[0])
