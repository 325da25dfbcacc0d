"""The eager engine: the pure step as it is written. Runs whatever PyTorch runs; the reference for all others."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import torch

from lthfunc.training.engines.interface import Engine, Network, Tick, Work, chunk_of, device_of
from lthfunc.training.engines.vmapped import carry_of, stacked, states_of, vmapped, vmapped_eval
from lthfunc.training.evaluation import Evaluation, evaluate
from lthfunc.training.prefetch import Prefetcher
from lthfunc.trees.global_rng import preserved_python_and_numpy, seed_python_and_numpy
from lthfunc.trees.ops import clone
from lthfunc.trees.rng import key
from lthfunc.trees.types import Split, TrainState


def eager(work: Work) -> Engine:
    """Steps taken one operation at a time."""

    def measure(networks: Sequence[Network], split: Split) -> list[Evaluation]:
        step = vmapped_eval(work.evaluate, len(networks), own_inputs=work.side_effects.writes_input)
        leaves = stacked([(each.params, each.buffers) for each in networks])
        device = device_of(leaves[0])
        chunk = chunk_of(work, len(networks), split, device)
        return evaluate(lambda batch: step(*leaves, batch), split, device, chunk, work.collectives)

    return Engine("eager", partial(_Loop, work), measure)


class _Loop:
    draws = True

    def __init__(self, work: Work, states: Sequence[TrainState], seeds: Sequence[int], prefetcher: Prefetcher) -> None:
        self._width, self._seeds = len(states), seeds
        self._outside, rank = work.side_effects.global_rngs, work.collectives.rank
        self._step = int(states[0].step) if self._outside else 0  # a GPU is waited for where somebody asks for it
        self._rank = [rank] if rank else []
        self._advance, self._batches = vmapped(work.advance, self._width), prefetcher.batches
        # Copies, here and in `states`: a module may write into its parameters, and nobody else is to see it.
        self._carry = clone(carry_of(states, seeds, work.collectives))

    def take(self, steps: int, tick: Tick | None) -> int:
        with preserved_python_and_numpy() if self._outside else nullcontext():
            for slot in range(steps):
                if self._outside:
                    seed_python_and_numpy(key(self._seeds[0], "outside", self._step, *self._rank))
                self._carry = self._advance(self._carry, self._batches[slot])
                self._step += 1
                if tick is not None and tick(1):
                    return slot + 1
        return steps

    def losses(self) -> list[float]:
        return self._carry.losses

    def count_from(self, losses: Sequence[float]) -> None:
        self._carry = self._carry.with_losses(losses)

    def states(self) -> list[TrainState]:
        return states_of(self._carry, self._width, torch.clone)
