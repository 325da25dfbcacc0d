"""Language models: losses and perplexity by hand, over whole splits, and as a metric of which less is better."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import run
from test_winner import line
from torch import nn

import lthfunc as lf
from lthfunc.deployment.accuracy import accuracy_of
from lthfunc.errors import UserError
from lthfunc.experiments.metrics import metric_scale
from lthfunc.experiments.records import Spread
from lthfunc.experiments.winner import Choice, choose
from lthfunc.reports.charts import Bars
from lthfunc.reports.connectivity import barrier_charts, barrier_rows, barrier_table
from lthfunc.reports.curves import accuracy_chart, curve_charts
from lthfunc.reports.methods import MethodPoint, method_picture, most_accurate, ranked
from lthfunc.reports.sweeps import best_of, trial_pictures
from lthfunc.reports.verdict import normalisation_hint, verdict
from lthfunc.runs.sweep_results import Trial, as_values
from lthfunc.training.trainer import measure


def test_next_token_and_perplexity_by_hand() -> None:
    outputs, targets = torch.randn(3, 5, 7), torch.randint(0, 7, (3, 5))
    logs = outputs.double().log_softmax(-1)
    mean = -sum(logs[i, j, targets[i, j]] for i in range(3) for j in range(5)) / 15
    assert float(lf.next_token(outputs, targets)) == pytest.approx(float(mean), rel=1e-6)
    assert float(lf.perplexity(outputs, targets)) == pytest.approx(math.exp(mean), rel=1e-6)
    smoothed = F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), label_smoothing=0.2)
    torch.testing.assert_close(lf.label_smoothed_next_token(0.2)(outputs, targets), smoothed)
    assert math.isfinite(float(lf.perplexity(1e6 * outputs, targets)))  # a file of JSON has no infinity
    for function in (lf.next_token, lf.perplexity, lf.label_smoothed_next_token(0.1)):
        with pytest.raises(UserError, match=r"expected logits \(n, length, vocabulary\)"):
            function(outputs[:, 0], targets[:, 0])


def text(count: int = 700) -> lf.Dataset:
    """More examples than are evaluated at a time, the last ones with other tokens than the first."""
    ids = torch.arange(count * 4).view(count, 4) % 5
    ids[600:] = ids[600:] // 2
    split = lf.Split(ids, (ids + 1) % 5)
    return lf.Dataset("tokens", split, split, split, classes=5)


def test_the_perplexity_of_a_split_is_that_of_all_its_tokens() -> None:
    """Not the mean of the chunks' perplexities; with two networks side by side, too."""
    data, model = text(), lf.from_module(nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 5)), tokens=True)
    trainer = lf.make_trainer(model, data, optimizer=lf.adam(0.01), loss=lf.next_token, metric=lf.perplexity,
                              batch_size=50)  # fmt: skip
    states = [lf.init(model, seed) for seed in range(2)]
    wanted = []
    for state in states:
        outputs = torch.func.functional_call(model.evaluating, state.params, (data.test.x,))
        wanted.append(float(F.cross_entropy(outputs.flatten(0, 1).double(), data.test.y.flatten()).exp()))
    found = [each.accuracy for each in measure(trainer, states, data.test)]
    assert found == pytest.approx(wanted, rel=1e-5)
    assert lf.accuracy_on(model, states[0], data, metric=lf.perplexity) == pytest.approx(wanted[0], rel=1e-5)
    module = lf.to_module(lf.ticket(states[0]), model)
    assert accuracy_of(module, data, 64, metric=lf.perplexity) == pytest.approx(wanted[0], rel=1e-5)
    between = lf.line(model, states[0], states[1], data.test, points=3, metric=lf.perplexity, lower_is_better=True)
    assert between.error[[0, 2]].tolist() == pytest.approx(wanted, rel=1e-5)
    learnt = lf.fit(trainer, states[0], seed=0, until=300, eval_every=300).curve
    assert 1 <= learnt[-1].val_accuracy < 3 < learnt[0].val_accuracy


def chosen(*rounds: float, seeds: int = 1) -> Choice:
    """The choice of seeds with about these perplexities, in the order of the rounds."""
    records = [
        line(seed, number, each + seed, metric="perplexity")
        for seed in range(seeds)
        for number, each in enumerate(rounds)
    ]
    return choose(records, 2000)


def test_the_winner_has_the_lower_perplexity() -> None:
    won = chosen(10.0, 9.5, 9.0, 12.0)
    assert won.winning_round == 2
    assert "validation perplexity is no worse than the dense network's: 9.00 against 10.00." in verdict(won)
    lost = chosen(10.0, 12.0, 11.0)
    assert lost.winner is None
    assert lost.best is not None
    assert lost.best.row.round == 2
    assert "perplexity of 11.00, 1.00 above the dense network's 10.00." in verdict(lost)
    assert "the difference is +1.00 ± 0.00 (mean" in verdict(chosen(10.0, 11.0, seeds=2))
    assert normalisation_hint(won) == ""  # its points are those of shares


def test_pictures_and_comparisons_take_the_lower_perplexity_for_better() -> None:
    more = {"test_loss": 1.0, "early_stop_step": 1}
    records = [
        {**line(0, number, each, metric="perplexity"), **more, "test_accuracy": each,
         "curve": [[0, None, 3.0, 40.0], [1, 3.0, 2.0, each]]}
        for number, each in enumerate((12.0, 9.0))
    ]  # fmt: skip
    chart = accuracy_chart({"": records})
    assert (chart.y, list(chart.series[0].y)) == ("test perplexity at early stopping", [12.0, 9.0])
    assert "Lower is better" in chart.caption
    curve = curve_charts(records)[1]
    assert curve.y == "validation perplexity"
    assert curve.y_range is not None
    assert curve.y_range[0] < 9 < 12 < curve.y_range[1] <= 42
    methods = [
        MethodPoint(name, 0.1, 1, 0.1, {0: value}, Spread(value, 0.0), 1.0, 1.0, scale=metric_scale("perplexity"))
        for name, value in {"snip": 9.0, "grasp": 8.0}.items()
    ]
    assert ranked(methods) == ["grasp", "snip"]
    (words,) = most_accurate(methods)
    assert words.startswith("The best perplexity on the test set: grasp, 8.00, with one seed")
    picture = method_picture(methods, "")
    assert isinstance(picture, Bars)
    assert (picture.x, picture.groups[0][1]) == ("test perplexity", [8.0, 9.0])
    trials = [Trial(number, {"lr": 0.1 * number}, Spread(value, 0.0), Spread(value, 0.0), 0.5, 1.0, None, "perplexity")
              for number, value in enumerate((9.0, 7.0, 8.0), 1)]  # fmt: skip
    assert best_of(trials) is trials[1]
    assert as_values(trials[1])["metric"] == "perplexity"
    assert trial_pictures(trials, ["lr"], grid=False)[0].title == "Validation perplexity by lr"
    barriers = [{"seed": 0, "k": 0, "metric": "perplexity", "barrier": 2.0, "alphas": [0, 0.5, 1], "error": [8, 10, 8]}]
    assert "their test perplexity" in str(barrier_table(barrier_rows(barriers)).columns[1].header)
    assert list(barrier_charts(barriers)[0].series[0].y) == [8, 10, 8]


def test_a_language_model_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.txt").write_text("the quick brown fox jumps over the lazy dog. " * 60)
    words = "--dataset text:t.txt --dataset-option length=8 --loss next-token --metric perplexity --engine eager"
    network = "--arch char-transformer --arch-option layers=1 --arch-option width=16 --steps 60 --eval-every 30"
    assert run("prune", *words.split(), *network.split(), "--rounds", 1, "--out", "run", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert 1 < found["rounds"][0]["test_accuracy"]["mean"] < 20  # of some 29 characters
    assert (found["rounds"][0]["metric"], found["config"]["loss"]) == ("perplexity", "next-token")
    gain = found["rounds"][0]["val_accuracy"]["mean"] - found["rounds"][1]["val_accuracy"]["mean"]
    assert found["against_dense"]["difference"] == pytest.approx(gain)
    assert (found["winning_round"] == 1) == (gain >= 0)
    assert run("info", "run") == 0
    told = capsys.readouterr().out
    assert "val perplexity" in told
    assert "perplexity %" not in told
    assert run("prune", "--loss", "next-token", "--out", "no") == 2
    assert "--loss: invalid value 'next-token' (expected cross-entropy or" in capsys.readouterr().err
