"""The compiled engine: one program per shape, whose results are written into its own arguments' memory.

To the outside it is pure: a loop works on copies of the states it was given, and gives copies back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lthfunc.errors import UserError
from lthfunc.training.engines.cuda_graphs import Launcher
from lthfunc.training.engines.evaluation_graphs import EvaluationGraph, evaluation_graph
from lthfunc.training.engines.interface import Engine, Network, Running, Tick, Work, chunk_of, device_of
from lthfunc.training.engines.memory_formats import MEMORY_FORMATS, MemoryFormats
from lthfunc.training.engines.reused_memory import GraphPools, Reusable
from lthfunc.training.engines.tracing import CompiledFunction, compiled
from lthfunc.training.engines.vmapped import carry_of, stacked, states_of, vmapped, vmapped_eval
from lthfunc.training.evaluation import Evaluation, evaluate
from lthfunc.training.prefetch import Prefetcher
from lthfunc.training.steps import Metrics
from lthfunc.trees.model import apply_evaluating
from lthfunc.trees.ops import flattened, leaves
from lthfunc.trees.types import Batch, Split, TrainState

#: Makes a program, or finds the one made before, for tensors like these, of which a vector may have any length.
Compile = Callable[..., CompiledFunction]
#: The first torch that is known to compile several networks in one program rightly for a CPU.
_RIGHT = (2, 14)


class _Memory(NamedTuple):
    """What a loop on a GPU leaves: the carry's leaves, the prefetcher's slots, and the graphs captured on them."""

    leaves: list[Tensor]
    slots: Batch
    launcher: Launcher


class _Shared(NamedTuple):
    """What loops and evaluations of an engine share. graphs: whether steps are captured on a GPU."""

    work: Work
    program: Compile
    formats: MemoryFormats
    graphs: bool
    pools: GraphPools
    training: Reusable[_Memory]
    measuring: Reusable[EvaluationGraph]


def compile_engine(work: Work, formats: MemoryFormats = MEMORY_FORMATS, *, graphs: bool = True) -> Engine:
    """Compiled steps and evaluations; each is compiled once, whatever the masks, seeds, rounds or learning rate.

    formats: how numbers lie in memory; graphs: whether steps are captured on a GPU. Both are for measuring what the
    others would do.
    """
    programs: dict[Any, CompiledFunction] = {}

    def program(
        kind: str, function: Callable[..., Any], example: Sequence[Tensor], free: Tensor | None = None
    ) -> CompiledFunction:
        shapes = tuple(
            (None if leaf is free else leaf.shape, leaf.stride(), leaf.dtype, leaf.device) for leaf in example
        )
        if (kind, shapes) not in programs:
            programs[kind, shapes] = compiled(function, example, work.model.name)
        return programs[kind, shapes]

    shared = _Shared(work, program, formats, graphs, GraphPools(), Reusable(), Reusable())

    def begin(states: Sequence[TrainState], seeds: Sequence[int], prefetcher: Prefetcher) -> Running:
        (_, *shape), kind = prefetcher.kinds[0]  # its memory may be that of a training before
        _check_types(work, states[0], shape if len(states) == 1 else shape[1:], kind)
        if len(states) > 1:
            _check_torch(states[0].step.device)
        return _Loop(shared, states, seeds, prefetcher)

    def measure(networks: Sequence[Network], split: Split) -> list[Evaluation]:
        _check_types(work, networks[0], split.x[:2].shape, split.x.dtype)
        return _measure(shared, networks, split)

    def forget() -> None:
        shared.training.clear()
        shared.measuring.clear()

    return Engine("compile", begin, measure, forget)


def _check_torch(device: torch.device) -> None:
    """Raise UserError where networks side by side would get wrong gradients.

    Inductor 2.11 computes them wrongly for a CPU behind a batch norm, by some per cent; 2.14 is held to the eager one
    by the tests, and what lies between was not tried.
    """
    release = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if device.type == "cpu" and release < _RIGHT:
        raise UserError(
            f"engine: compile trains networks side by side on a CPU with torch {_RIGHT[0]}.{_RIGHT[1]} or newer, not "
            f"with {torch.__version__}, whose compiler gets their gradients wrong; use eager, or train them one by one"
        )


def _check_types(work: Work, network: Network, shape: Sequence[int], dtype: torch.dtype) -> None:
    """Raise UserError where a module can't take inputs of another type than its parameters: a trace doesn't see it."""
    kind = torch.float32 if work.scale is not None else dtype
    params = network.params
    if any(leaf.dtype == kind for leaf in params.values()) or not kind.is_floating_point:
        return
    apply_evaluating(work.model, params, network.buffers, torch.zeros(*shape, dtype=kind, device=device_of(params)))


class _Loop:
    draws = True

    def __init__(
        self, shared: _Shared, states: Sequence[TrainState], seeds: Sequence[int], prefetcher: Prefetcher
    ) -> None:
        work, width, device = shared.work, len(states), states[0].step.device
        formats = shared.formats
        carry = carry_of(states, seeds, work.collectives, floating=formats.floating_masks)
        parts, rebuilt = flattened(carry)
        self._rebuilt, self._width = rebuilt, width
        fit = (tuple((leaf.shape, leaf.dtype, leaf.device) for leaf in parts), prefetcher.kinds)
        memory = shared.training.take(fit)
        if memory is not None:
            prefetcher.use(memory.slots)
            self._leaves, self._launcher = memory.leaves, memory.launcher
            for kept, leaf in zip(self._leaves, parts, strict=True):
                kept.copy_(leaf)
        else:
            # Copies, also where floating masks or stacking have made some already: the caller's tensors stay untouched.
            self._leaves = [leaf.clone(memory_format=formats.of(leaf, width)) for leaf in parts]
            self._launcher = self._launching(shared, prefetcher, device)
        if device.type == "cuda":
            left = _Memory(self._leaves, prefetcher.slotted, self._launcher)
            prefetcher.at_end(lambda: shared.training.leave(fit, left))

    def _launching(self, shared: _Shared, prefetcher: Prefetcher, device: torch.device) -> Launcher:
        work, rebuilt = shared.work, self._rebuilt
        advance = vmapped(work.advance, self._width)

        def in_place(*arguments: Tensor) -> tuple[()]:
            *old, x, y = arguments
            after = advance(rebuilt(old), (x, y))
            for kept, new in zip(old, leaves(after), strict=True):
                if new is not kept:
                    kept.copy_(new)
            return ()

        # What travels between ranks is read by one operation alone, whatever its length.
        free = self._leaves[-1] if work.collectives.world_size > 1 else None
        step = shared.program("train", in_place, (*self._leaves, *prefetcher.batches[0]), free)
        slots = [(*self._leaves, *batch) for batch in prefetcher.batches]
        return Launcher(step, slots, shared.pools, capture=shared.graphs)

    def take(self, steps: int, tick: Tick | None) -> int:
        return self._launcher.launch(steps, tick)

    def losses(self) -> list[float]:
        return self._rebuilt(self._leaves).losses

    def count_from(self, losses: Sequence[float]) -> None:
        carry = self._rebuilt(self._leaves)
        carry.loss.copy_(carry.with_losses(losses).loss)

    def states(self) -> list[TrainState]:
        copy = partial(torch.clone, memory_format=torch.contiguous_format)
        return states_of(self._rebuilt(self._leaves), self._width, copy)


def _measure(shared: _Shared, networks: Sequence[Network], split: Split) -> list[Evaluation]:
    work, width, device = shared.work, len(networks), device_of(networks[0].params)
    step = vmapped_eval(work.evaluate, width, own_inputs=work.side_effects.writes_input)
    together = stacked([(each.params, each.buffers) for each in networks])
    parts, rebuilt = flattened(together)
    parts = [leaf.contiguous(memory_format=shared.formats.of(leaf, width)) for leaf in parts]

    def flat(*arguments: Tensor) -> tuple[Tensor, Tensor]:
        *network, x, y = arguments
        metrics = step(*rebuilt(network), (x, y))
        return metrics["loss"], metrics["accuracy"]

    chunk = chunk_of(work, width, split, device)
    graphs = None
    if device.type == "cuda":
        first = split.x[:chunk], split.y[:chunk]
        graphs = evaluation_graph(shared.measuring, flat, shared.program, parts, width, first, shared.pools)

    def metrics_of(batch: Batch) -> Metrics:
        if len(batch[0]) < chunk:  # the last examples; a program of their own would be a second compilation
            return step(*together, batch)
        if graphs is not None:
            loss, correct = graphs.metrics_of(batch)
        else:
            loss, correct = shared.program("eval", flat, (*parts, *batch))(*parts, *batch)
        return {"loss": loss, "accuracy": correct}

    found = evaluate(metrics_of, split, device, chunk, work.collectives)
    if graphs is not None:
        shared.measuring.leave(graphs.fit, graphs)
    return found
