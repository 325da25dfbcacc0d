"""Which pruned weights of a layer grow: any of them, without a number for each weight."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.sparsify.scores import Scores
from lthfunc.trees.rng import distinct, generator
from lthfunc.trees.types import Growth


@public
def random_growth(seed: int, *counters: int | str) -> Growth:
    """Grow any pruned weights, as SET does (Mocanu et al. 2018, alg. 1): the growth of `drop_and_grow`.

    The same (seed, counters) and parameter name always pick the same weights, every set of them as likely as any other.
    Nothing as large as the layer is made, so that it costs what grows. Returns a function (name, taken places, size of
    the layer, count) -> places that grow.

    >>> lf.random_growth(0, "example")("w", torch.tensor([0, 2]), 4, 2)
    tensor([1, 3])
    """

    return RandomGrowth(seed, counters)


@dataclass(frozen=True)
class RandomGrowth:
    """What `random_growth` gives."""

    seed: int
    counters: tuple[int | str, ...]

    def __call__(self, name: str, taken: Tensor, size: int, count: int) -> Tensor:
        return free_places(self.numbers(name, size - len(taken), count), taken)

    def numbers(self, name: str, free: int, count: int) -> Tensor:
        """Which of so many free places of a layer grow, rising."""
        return distinct(count, free, generator(self.seed, "random-growth", *self.counters, name))


def ties_drawn(scores: Scores, seed: int, *counters: int | str) -> Scores:
    """The ranks of scores within their layer, from 0 for the lowest: of equal ones in an order drawn at random.

    The same (seed, counters) and parameter name always draw the same. Where ranks pass what the scores' dtype holds
    exactly (2^24 in float32), neighbours tie again.
    """

    def ranks(name: str, leaf: Tensor) -> Tensor:
        flat = leaf.flatten()
        drawn = torch.randperm(len(flat), generator=generator(seed, "growth-ties", *counters, name)).to(leaf.device)
        order = drawn[flat[drawn].argsort(stable=True)]
        places = torch.arange(len(flat), device=leaf.device).to(leaf.dtype)
        return torch.empty_like(flat).scatter_(0, order, places).view(leaf.shape)

    return {name: ranks(name, leaf) for name, leaf in scores.items()}


def free_places(numbers: Tensor, taken: Tensor) -> Tensor:
    """Where the free places of these numbers lie, counted from 0 on without those taken. Both rise."""
    before = taken - torch.arange(len(taken))  # free places before each one taken
    return numbers + torch.from_numpy(np.searchsorted(before.numpy(), numbers.numpy(), side="right"))
