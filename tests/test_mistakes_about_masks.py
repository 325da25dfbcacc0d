"""Mistakes in what is pruned and grown: counts, scores and moments of other weights, and nothing left to prune."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from mistakes import assert_told_in_one_line
from torch import nn

import lthfunc

lf: Any = lthfunc  # What is passed is wrong on purpose.
NET = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 10))
MODEL = lf.from_module(NET)
START = lf.init(MODEL)
GROUPS = lf.dependency_groups(MODEL, (1, 8, 8))
NOTHING = START._replace(masks=lf.tree_map(torch.zeros_like, START.masks))


def growing(growth: Any, **given: Any) -> Any:
    return lf.drop_and_grow(START, growth, 0.3, **given)


def updated(steps: tuple[int, ...]) -> Any:
    updates = lf.MaskUpdates(steps, lambda state, now: state)
    trainer = lf.make_trainer(MODEL, lf.data.load("digits"), optimizer=lf.sgd(0.1))
    return lf.fit(trainer, START, seed=0, until=4, eval_every=4, updates=updates)


def blockwise(**given: Any) -> Any:
    return lf.prune_sequentially(MODEL, **{"inputs": [torch.ones(4, 1, 8, 8)], "density": 0.5, **given})


#: What is typed, and what the one line says.
MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "no weight left": (lambda: lf.prune(density=0.5)(NOTHING), "^density: no weight is left to prune$"),
    "counts of one layer": (
        lambda: lf.prune(fraction=0.5, allocate=lf.fixed_counts({"1.weight": 3}))(START),
        "^fixed_counts: no count for 3.weight$",
    ),
    "more than there are": (
        lambda: lf.prune(fraction=0.5, allocate=lf.fixed_counts({"1.weight": 321, "3.weight": 1}))(START),
        r"^fixed_counts: 1.weight: invalid value 321 \(expected a whole number from 0 to 320, its weights\)$",
    ),
    "fewer than none": (
        lambda: lf.prune(fraction=0.5, allocate=lf.fixed_counts({"1.weight": -1, "3.weight": 1}))(START),
        "^fixed_counts: 1.weight: invalid value -1 ",
    ),
    "no moments": (
        lambda: lf.sparsegpt({}, 0.5)(START), r"^moments: invalid value \[\] \(expected those of some of 1",
    ),
    "growth that is not called": (
        lambda: growing(lf.random_growth), r"not the function random_growth; call it: lf.random_growth\(…\)$",
    ),
    "growth of a layer": (
        lambda: growing({"1.weight": torch.ones(5, 64)}), "^growth: has no scores of 3.weight$",
    ),
    "growth of another shape": (
        lambda: growing({"1.weight": torch.ones(64, 5), "3.weight": torch.ones(10, 5)}),
        r"^growth: 1.weight: invalid value \(64, 5\) \(expected a score for each weight, in the shape \(5, 64\)\)$",
    ),
    "drop scores of a layer": (
        lambda: growing(lf.random_growth(0), drop_score={"1.weight": torch.ones(5, 64)}),
        "^drop: scores: '3.weight', which has a mask, is missing",
    ),
    "blocks of another network": (
        lambda: blockwise()(lf.init(lf.from_module(nn.Linear(3, 2)))),
        "^prune_sequentially: state and the model Sequential are of different networks: ",
    ),
    "a batch of nothing": (
        lambda: blockwise(inputs=[torch.ones(4, 1, 8, 8), torch.ones(0, 1, 8, 8)])(START),
        r"^inputs: invalid value \[4, 0\] \(expected one batch or more, of one example or more\)$",
    ),
    "no blocks": (
        lambda: lf.prune_sequentially(one := lf.from_module(nn.Linear(3, 2)), [torch.ones(2, 3)], 0.5)(lf.init(one)),
        "^blocks: no prunable weight of Linear lies within a module that is a block$",
    ),
    "pruning that is not called": (lambda: blockwise(pruning=lf.wanda_pruning), r"; call it: lf.wanda_pruning\(…\)$"),
    "budgets that are not called": (lambda: blockwise(budgets=lf.owl), r"not the function owl; call it: lf.owl\(…\)$"),
    "on_block": (lambda: blockwise(on_block=3), r"on_block must be a function of \(block, count\), not 3"),
    "no groups": (
        lambda: lf.prune_groups((), density=0.5)(START),
        r"^prune_groups: groups: invalid value \[\] \(expected one group or more\)$",
    ),
    "costs below zero": (
        lambda: lf.prune_groups(GROUPS, density=0.5, costs={"1.weight": 1.0, "3.weight": -0.5}),
        r"^prune_groups: costs: 3.weight: invalid value -0.5 \(expected a number of at least 0\)$",
    ),
    "updates backwards": (
        lambda: updated((3, 1)), r"^updates: steps: invalid value \(3, 1\) \(expected steps that increase\)$",
    ),
    "updates twice": (lambda: updated((2, 2)), "steps that increase"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_one_line(name: str) -> None:
    assert_told_in_one_line(*MISTAKES[name])


def test_what_is_right_about_masks_stays_right() -> None:
    all_but = lf.fixed_counts({"1.weight": 320, "3.weight": 0})
    assert lf.count(lf.prune(fraction=0.5, allocate=all_but)(START).masks).kept == 320
    assert lf.count(growing(START.params).masks) == lf.count(START.masks)
    assert [each.step for each in updated((1, 3)).changes] == [1, 3]
