"""The compiled engine: one program per shape, whose results are written into its own arguments' memory.

To the outside it is pure: a loop works on copies of the states it was given, and gives copies back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lthfunc.training.engines.interface import Engine, Running, Tick, Work
from lthfunc.training.engines.launching import Launcher
from lthfunc.training.engines.side_by_side import (
    carry_of,
    losses_of,
    stacked,
    states_of,
    widened,
    widened_eval,
    with_losses,
)
from lthfunc.training.engines.tracing import Program, compiled
from lthfunc.training.evaluation import Quality, chunk_for, evaluate
from lthfunc.training.feed import Feed
from lthfunc.training.steps import Metrics
from lthfunc.trees.ops import flattened, leaves
from lthfunc.trees.types import Batch, Buffers, Params, Split, TrainState

#: Makes a program, or finds the one made before, for tensors like these, of which a vector may have any length.
Compile = Callable[..., Program]


def compile_engine(work: Work) -> Engine:
    """Compiled steps and evaluations; each is compiled once, whatever the masks, seeds, rounds or learning rate."""
    programs: dict[Any, Program] = {}

    def program(
        kind: str, function: Callable[..., Any], example: Sequence[Tensor], free: Tensor | None = None
    ) -> Program:
        shapes = tuple(
            (None if leaf is free else leaf.shape, leaf.stride(), leaf.dtype, leaf.device) for leaf in example
        )
        if (kind, shapes) not in programs:
            programs[kind, shapes] = compiled(function, example, work.model.name)
        return programs[kind, shapes]

    def begin(states: Sequence[TrainState], seeds: Sequence[int], feed: Feed) -> Running:
        return _Loop(work, program, states, seeds, feed)

    def measure(
        params: Sequence[Params], buffers: Sequence[Buffers], split: Split, device: torch.device
    ) -> list[Quality]:
        return _measure(work, program, params, buffers, split, device)

    return Engine("compile", begin, measure)


class _Loop:
    draws = True

    def __init__(
        self, work: Work, program: Compile, states: Sequence[TrainState], seeds: Sequence[int], feed: Feed
    ) -> None:
        width = len(states)
        carry = carry_of(states, seeds, work.exchange)
        advance = widened(work.advance, width)
        parts, rebuilt = flattened(carry)
        layout = _layout(width)
        # Copies, also where floating masks or stacking have made some already: the caller's tensors stay untouched.
        self._leaves = [leaf.clone(memory_format=_format(leaf, layout)) for leaf in parts]
        self._rebuilt, self._width = rebuilt, width

        def in_place(*arguments: Tensor) -> tuple[()]:
            *old, x, y = arguments
            after = advance(rebuilt(old), (x, y))
            for kept, new in zip(old, leaves(after), strict=True):
                if new is not kept:
                    kept.copy_(new)
            return ()

        # What travels between ranks is read by one operation alone, whatever its length.
        free = self._leaves[-1] if work.exchange.ranks > 1 else None
        step = program("train", in_place, (*self._leaves, *feed.batches[0]), free)
        self._launcher = Launcher(step, [(*self._leaves, *batch) for batch in feed.batches])

    def take(self, steps: int, tick: Tick | None) -> int:
        return self._launcher.launch(steps, tick)

    def losses(self) -> list[float]:
        return losses_of(self._rebuilt(self._leaves))

    def count_from(self, losses: Sequence[float]) -> None:
        carry = self._rebuilt(self._leaves)
        carry.loss.copy_(with_losses(carry, losses).loss)

    def states(self) -> list[TrainState]:
        def copy(leaf: Tensor) -> Tensor:
            return leaf.clone(memory_format=torch.contiguous_format)

        return states_of(self._rebuilt(self._leaves), self._width, copy)


def _measure(
    work: Work,
    program: Compile,
    params: Sequence[Params],
    buffers: Sequence[Buffers],
    split: Split,
    device: torch.device,
) -> list[Quality]:
    width = len(params)
    step = widened_eval(work.evaluate, width, own_inputs=work.habits.writes_input)
    networks = stacked(params), stacked(buffers)
    parts, rebuilt = flattened(networks)
    parts = [leaf.contiguous(memory_format=_format(leaf, _layout(width))) for leaf in parts]

    def flat(*arguments: Tensor) -> tuple[Tensor, Tensor]:
        *network, x, y = arguments
        metrics = step(*rebuilt(network), (x, y))
        return metrics["loss"], metrics["accuracy"]

    chunk = chunk_for(width)

    def metrics_of(batch: Batch) -> Metrics:
        if len(batch[0]) < chunk:  # the last examples; a program of their own would be a second compilation
            return step(*networks, batch)
        loss, correct = program("eval", flat, (*parts, *batch))(*parts, *batch)
        return {"loss": loss, "accuracy": correct}

    return evaluate(metrics_of, split, device, chunk, work.exchange)


def _layout(width: int) -> torch.memory_format:
    """Channels last, which convolutions of single networks run faster on; vmapped ones are grouped, and don't."""
    return torch.channels_last if width == 1 else torch.contiguous_format


def _format(leaf: Tensor, layout: torch.memory_format) -> torch.memory_format:
    return layout if leaf.ndim == 4 else torch.contiguous_format
