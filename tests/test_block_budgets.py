"""Densities of blocks by the papers' formulas, in NumPy, and at the ends of their ranges."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.sparsify.block_budgets import hill_exponent

DRAW = torch.Generator().manual_seed(0)
WEIGHTS = {name: torch.randn(shape, generator=DRAW) for name, shape in {"a": (6, 5), "b": (4, 6)}.items()}
MASKS = {name: torch.ones_like(leaf, dtype=torch.bool) for name, leaf in WEIGHTS.items()}


@pytest.mark.parametrize("threshold", [0.5, 1.0, 2.0])
def test_outliers_are_counted_against_the_mean_of_the_block(threshold: float) -> None:
    """Yin et al. 2024, eq. 1: of all layers of the block together."""
    rows = {name: torch.randn(30, leaf.shape[1], generator=DRAW).double() for name, leaf in WEIGHTS.items()}
    moments = {name: x.T @ x / len(x) for name, x in rows.items()}
    metric = [np.abs(WEIGHTS[name].numpy()) * np.sqrt((rows[name].numpy() ** 2).mean(0)) for name in WEIGHTS]
    flat = np.concatenate([each.ravel() for each in metric])
    found = lf.owl(threshold).measure(WEIGHTS, MASKS, moments)
    assert found == pytest.approx((flat > threshold * flat.mean()).mean())
    alike = {"a": torch.ones(3, 4)}
    assert lf.owl(1.0).measure(alike, {"a": torch.ones(3, 4) > 0}, {"a": torch.eye(4)}) == 0  # none is above the mean


def test_defaults_are_the_papers() -> None:
    """A threshold of 5 and λ = 0.08; τ = 0.3."""
    lone = {"a": torch.zeros(1, 40)}
    lone["a"][0, 0], lone["a"][0, 1:] = 6.5, 1.0  # 5.7 times the mean
    assert lf.owl().measure(lone, {"a": lone["a"] > -1}, {"a": torch.eye(40)}) == 1 / 40
    assert lf.owl().densities([0, 1], [1, 1], 0.5) == pytest.approx([0.42, 0.58])
    assert lf.alpha_pruning().densities([0, 1], [1, 1], 0.5) == pytest.approx([0.65, 0.35])
    assert [each().inputs for each in (lf.owl, lf.alpha_pruning, lf.same_density)] == [True, False, False]
    assert lf.same_density().densities([1.0, 2.0, 9.0], [1, 2, 3], 0.3) == [0.3] * 3
    assert lf.same_density().measure(WEIGHTS, MASKS, {}) == 0


def test_densities_grow_with_outliers_and_fall_with_exponents() -> None:
    measures, sizes, density = [0.1, 0.4, 0.2, 0.1], [100, 300, 50, 10], 0.3
    places = (np.array(measures) - 0.1) / 0.3
    wanted = density + 0.2 * places - (0.2 * places).mean()
    assert lf.owl(spread=0.1).densities(measures, sizes, density) == pytest.approx(wanted.tolist())
    shares = 0.6 + 0.8 * places  # of weights that are pruned, times one number
    wanted = 1 - shares * (1 - density) * sum(sizes) / (shares * sizes).sum()
    found = lf.alpha_pruning(0.4).densities(measures, sizes, density)
    assert found == pytest.approx(wanted.tolist())
    assert np.dot(found, sizes) == pytest.approx(density * sum(sizes))
    for budgets in (lf.owl(), lf.alpha_pruning()):
        assert budgets.densities([2.0] * 4, sizes, density) == pytest.approx([density] * 4)
        assert budgets.densities([math.inf] * 4, sizes, density) == pytest.approx([density] * 4)
        infinite, largest = (budgets.densities([0.1, 0.2, most, 0.4], sizes, density) for most in (math.inf, 0.4))
        assert infinite == pytest.approx(largest)


def exponent(*matrices: Any) -> float:
    """Lu et al. 2024, eq. 2, of the eigenvalues of Wᵀ W of some matrices together."""
    products = [w.conj().T @ w if w.shape[1] <= w.shape[0] else w @ w.conj().T for w in map(np.asarray, matrices)]
    values = np.sort(np.concatenate([np.linalg.eigvalsh(each) for each in products]))
    top = values[len(values) // 2 :]
    return float(1 + len(top) / np.log(top / top[0]).sum())


@pytest.mark.parametrize("shape", [(9, 7), (6, 8), (5, 5), (5, 4, 3), (4, 5, 2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128])
def test_exponents_are_hills_estimate(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    wide = weight if dtype.is_complex else weight.double()
    matrices = list(wide.flatten(2).movedim(2, 0)) if weight.ndim > 2 else [wide]
    assert hill_exponent(weight) == pytest.approx(exponent(*matrices), rel=1e-9)
    both = lf.alpha_pruning().measure(
        {"a": weight, "b": 2 * weight[:4]}, {"a": weight.real > 0, "b": weight.real > 0}, {}
    )
    assert both == pytest.approx((hill_exponent(weight) + hill_exponent(weight[:4])) / 2)


def test_exponents_of_known_spectra() -> None:
    def diagonal(*values: float) -> Tensor:
        return torch.diag(torch.tensor(values, dtype=torch.float64).sqrt())

    assert hill_exponent(diagonal(1, 16, 4, 8, 2)) == pytest.approx(1 + 3 / (3 * math.log(2)))  # 4, 8 and 16
    assert hill_exponent(diagonal(3, 3, 3)) == hill_exponent(torch.zeros(4, 3)) == math.inf
    assert 1 < hill_exponent(diagonal(0, 0, 0, 1)) < 1.01


@pytest.mark.parametrize(
    ("make", "good", "bad"),
    [
        (lambda each: lf.owl(threshold=each), (0.5, 9.0), (0.0, -1.0)),
        (lambda each: lf.owl(spread=each), (0.0, 1.0), (-0.01, 1.01)),
        (lambda each: lf.alpha_pruning(each), (0.0, 0.99), (-0.01, 1.0, 1.5)),
    ],
    ids=["threshold", "owl", "alpha"],
)
def test_ranges(make: Callable[[float], Any], good: tuple[float, ...], bad: tuple[float, ...]) -> None:
    for value in good:
        make(value)
    for value in bad:
        with pytest.raises(UserError, match=r"^(threshold|spread): invalid value .* \(expected a number (above|in)"):
            make(value)
