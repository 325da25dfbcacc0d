"""Scores: how much each weight is worth keeping. Params and masks in, one float per weight out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lthfunc.trees.rng import generator
from lthfunc.trees.types import Masks, Params

#: One float leaf per prunable parameter, of its shape; higher = keep. Finite.
Scores = dict[str, Tensor]
Score = Callable[[Params, Masks], Scores]


def magnitude(params: Params, masks: Masks) -> Scores:
    """|w| (Han et al. 2015, sec. 3; the score of Frankle & Carbin 2019)."""
    return {name: params[name].abs() for name in masks}


def random_scores(seed: int, *counters: int | str) -> Score:
    """A score that draws uniformly from [0, 1), the same for the same (seed, counters) and leaf name.

    With the same seed in every round the pruned sets nest, as in the random sparse networks of
    Frankle & Carbin 2019, sec. 2.
    """

    def draw(name: str, mask: Tensor) -> Tensor:
        drawn = torch.rand(mask.shape, generator=generator(seed, "random-score", *counters, name))
        return drawn.to(mask.device)

    def score(params: Params, masks: Masks) -> Scores:
        return {name: draw(name, mask) for name, mask in masks.items()}

    return score
