"""Which round is the winning ticket: compared with scipy and binomial tables, and said in words."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from lthfunc.experiments.winner import Choice, choose
from lthfunc.reports.verdict import normalisation_hint, verdict


def line(seed: int, number: int, accuracy: float, variant: str = "ticket", metric: str = "accuracy") -> dict[str, Any]:
    return {
        "seed": seed, "round": number, "variant": variant, "kept": 10 - number, "total": 10,
        "density": 1 - number / 10, "layers": {"w": {"density": 1 - number / 10}}, "val_accuracy": accuracy,
        "test_accuracy": 0.5, "early_stop_step": 1, "seconds": 1.0, "metric": metric,
    }  # fmt: skip


def chosen(*rounds: float, examples: int | None = 2000, metric: str = "accuracy") -> Choice:
    """The choice of one seed with these accuracies, in the order of the rounds."""
    return choose([line(0, number, each, metric=metric) for number, each in enumerate(rounds)], examples)


def test_the_winner_is_the_sparsest_whatever_lies_between() -> None:
    controls = [line(0, 3, 0.99, "reinit")]
    found = choose([line(0, number, each) for number, each in enumerate((0.5, 0.5, 0.75, 0.25))] + controls, 2000)
    assert found.winning_round == 2
    assert found.best is None
    lost = chosen(0.9, 0.7, 0.8, 0.6)
    assert (lost.winning_round, lost.winner) == (None, None)
    assert lost.best is not None
    assert lost.best.row.round == 2  # the closest, not the sparsest
    for nothing in (choose([], 2000), choose(controls, 2000), choose([line(0, 1, 0.9)], 2000), chosen(0.9)):
        assert nothing.winner is nothing.best is None
        assert verdict(nothing) == ""


@pytest.mark.parametrize("accuracy", [0.0, 0.5, 0.95, 0.9995, 1.0])
def test_one_seed_may_lose_one_standard_error_of_the_split_and_always_one_example(accuracy: float) -> None:
    n = 2000
    right = round(accuracy * n)
    allowed = max(1.0, stats.binom.std(n, accuracy))  # examples
    for fewer in range(min(right, 60) + 1):
        won = chosen(right / n, (right - fewer) / n).winning_round == 1
        assert won == (fewer <= allowed + 1e-9), fewer
    assert chosen(right / n, float(np.float32((right - min(right, 1)) / n))).winning_round == 1  # float32 rounds


def test_several_seeds_are_paired_and_may_lose_one_standard_error_of_the_mean() -> None:
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(200):
        seeds, n = int(rng.integers(2, 8)), 2000
        dense = 0.95 + rng.normal(0, 0.01, seeds)  # seeds differ by more than the rounds do
        pruned = dense + rng.normal(rng.normal(0, 0.002), 0.002, seeds)
        items = [line(s, r, v[s]) for r, v in enumerate((dense, pruned)) for s in range(seeds)]
        found = choose([*items, line(99, 1, 0.0)], n)  # a seed without a dense network says nothing
        candidate = found.winner or found.best
        assert candidate is not None
        assert candidate.seeds == seeds
        assert candidate.standard_error == pytest.approx(stats.sem(pruned - dense))
        of_split = stats.binom.std(n, dense.mean()) / n
        allowed = max(1 / n, min(stats.sem(pruned - dense), of_split))
        assert candidate.noise == pytest.approx(allowed)
        assert candidate.difference == pytest.approx(np.mean(pruned) - np.mean(dense))
        assert (found.winner is not None) == (np.mean(pruned - dense) >= -allowed)
        outcomes.add((found.winner is not None, candidate.difference < 0))
    assert outcomes == {(True, True), (True, False), (False, True)}


def test_other_metrics_and_older_runs_allow_for_no_noise_with_one_seed() -> None:
    below, n = 0.95 - 1 / 2000, 2000
    assert chosen(0.95, below, metric="top-5").winning_round == 1
    for metric in ("r2", "mine.py:score"):
        assert chosen(0.95, below, metric=metric).winning_round is None
        assert chosen(0.95, 0.95, metric=metric).winning_round == 1
        items = [line(s, r, 0.9 - r * (0.001, 0.003)[s], metric=metric) for r in (0, 1) for s in (0, 1)]
        found = choose(items, n)
        assert found.best is not None
        assert found.best.noise == pytest.approx(stats.sem([0.001, 0.003]))
    assert chosen(0.95, below, examples=None).winning_round is None
    assert chosen(0.95, 0.95, 0.96, 0.94, examples=None).winning_round == 2


def test_the_verdict_gives_the_difference_the_noise_and_the_seeds() -> None:
    assert verdict(chosen(0.95, 0.96)) == (
        "Winning ticket: round 1, 90.0 % of the weights, is the sparsest whose validation accuracy is no worse than "
        "the dense network's: 96.00 % against 95.00 %. This is one seed: how much seeds differ is not known."
    )
    assert "94.95 % against 95.00 %, 0.05 points less but within the noise of 0.49." in verdict(chosen(0.95, 0.9495))
    assert verdict(chosen(0.95, 0.9)) == (
        "No pruned round won: the best of them, round 1, reaches a validation accuracy of 90.00 %, 5.00 points (noise "
        "explains 0.49) below the dense network's 95.00 %. This is one seed: how much seeds differ is not known."
    )
    assert normalisation_hint(chosen(0.95, 0.96)) == ""
    assert "round 1, which is trained here, is 28.00 points better" in normalisation_hint(chosen(0.67, 0.95))
    several = choose([line(s, r, 0.9 + r * (0.01, 0.03)[s]) for r in (0, 1) for s in (0, 1)], 100)
    half = 0.01 * math.sqrt(2) / math.sqrt(2)
    assert verdict(several).endswith(
        f"Over 2 seeds the difference is +2.00 ± {100 * half:.2f} points (mean ± standard error)."
    )
