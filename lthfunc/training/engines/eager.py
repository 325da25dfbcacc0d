"""The eager engine: the pure step as it is written. Runs whatever PyTorch runs; the reference for all others."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lthfunc.training.engines.interface import Engine, Running, Tick, Work
from lthfunc.training.engines.side_by_side import (
    carry_of,
    losses_of,
    stacked,
    states_of,
    widened,
    widened_eval,
    with_losses,
)
from lthfunc.training.evaluation import Quality, chunk_for, evaluate
from lthfunc.training.feed import Feed
from lthfunc.trees.types import Buffers, Params, Split, TrainState


def eager(work: Work) -> Engine:
    """Steps taken one operation at a time."""

    def begin(states: Sequence[TrainState], seeds: Sequence[int], feed: Feed) -> Running:
        return _Loop(work, states, seeds, feed)

    def measure(
        params: Sequence[Params], buffers: Sequence[Buffers], split: Split, device: torch.device
    ) -> list[Quality]:
        step, networks = widened_eval(work.evaluate, len(params)), (stacked(params), stacked(buffers))
        return evaluate(lambda batch: step(*networks, batch), split, device, chunk_for(len(params)), work.exchange)

    return Engine("eager", begin, measure)


class _Loop:
    draws = True

    def __init__(self, work: Work, states: Sequence[TrainState], seeds: Sequence[int], feed: Feed) -> None:
        self._width = len(states)
        self._advance, self._batches = widened(work.advance, self._width), feed.batches
        self._carry = carry_of(states, seeds, work.exchange)

    def take(self, steps: int, tick: Tick | None) -> int:
        for slot in range(steps):
            self._carry = self._advance(self._carry, self._batches[slot])
            if tick is not None and tick(1):
                return slot + 1
        return steps

    def losses(self) -> list[float]:
        return losses_of(self._carry)

    def count_from(self, losses: Sequence[float]) -> None:
        self._carry = with_losses(self._carry, losses)

    def states(self) -> list[TrainState]:
        return states_of(self._carry, self._width)
