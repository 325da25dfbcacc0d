"""FORCE against a loop of its own: SNIP in rounds, in which pruned weights may come back."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from conftest import gradient_of
from test_methods_by_hand import (
    DENSITY,
    LAYERS,
    Setting,
    a_setting,  # noqa: F401
    agree,
    by_hand,
    dense_of,
    largest,
    outputs,
    samples,
)


@pytest.mark.parametrize("rounds", [1, 3])
def test_force_lets_pruned_weights_come_back(setting: Setting, rounds: int) -> None:
    """de Jorge et al. 2021, alg. 1: sensitivity by gradients of the pruned network, of all weights."""
    dense = dense_of(setting)
    masks, seen = dense.masks, []
    for k in range(1, rounds + 1):
        leaves = {
            name: (leaf * masks[name] if name in masks else leaf).detach().requires_grad_()
            for name, leaf in dense.params.items()
        }
        drawn = samples(setting, "score", 1, 10)
        torch.stack([F.cross_entropy(outputs(leaves, x), y) for x, y in drawn]).mean().backward()
        worth = {name: (dense.params[name] * gradient_of(leaves[name])).abs() for name in LAYERS}
        masks = largest(worth, round(DENSITY ** (k / rounds) * 1480), dense.masks)
        seen.append(masks)
    agree(setting, setting.outcome("force", score_rounds=rounds), by_hand(setting, dense.params, masks))
    back = sum(int((after[name] & ~before[name]).sum()) for before, after in pairwise(seen) for name in LAYERS)
    assert (back > 0) == (rounds > 1)
