"""Evaluation on a GPU: one captured graph for each chunk of a split, of networks and examples that don't move."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lthfunc.training.engines.cuda_graphs import Launcher
from lthfunc.training.engines.reused_memory import GraphPools, Reusable
from lthfunc.training.engines.tracing import CompiledFunction
from lthfunc.trees.types import Batch


class EvaluationGraph(NamedTuple):
    """Memory that graphs were captured on. fit: what it is made for; network: leaves of all networks side by side;
    batch: a chunk; found: loss and accuracy, float64."""

    fit: Hashable
    network: list[Tensor]
    batch: Batch
    found: tuple[Tensor, Tensor]
    launcher: Launcher

    def metrics_of(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss and accuracy of a whole chunk, to be read before the next one."""
        for held, given in zip(self.batch, batch, strict=True):
            held.copy_(given)
        self.launcher.launch(1, None)
        return self.found


def evaluation_graph(
    kept: Reusable[EvaluationGraph],
    flat: Callable[..., tuple[Tensor, Tensor]],
    program: Callable[..., CompiledFunction],
    network: Sequence[Tensor],
    networks: int,
    first: Batch,
    pools: GraphPools,
) -> EvaluationGraph:
    """Memory with these networks in it, that of an earlier evaluation where it fits.

    flat: (leaves of the networks, inputs, targets) -> (loss, accuracy). program: makes a program of a function, or
    finds it. network: leaves of `networks` stacked networks. first: a chunk of the split, wherever it lies.
    """
    device = network[0].device
    fit = tuple((leaf.shape, leaf.dtype, leaf.device) for leaf in network), _kinds(first)
    memory = kept.take(fit)
    if memory is not None:
        for room, leaf in zip(memory.network, network, strict=True):
            room.copy_(leaf)
        return memory
    held = [leaf.clone() for leaf in network]
    x, y = (torch.empty(part.shape, dtype=part.dtype, device=device) for part in first)
    numbers = () if networks == 1 else (networks,)
    loss, correct = (torch.empty(numbers, dtype=torch.float64, device=device) for _ in range(2))

    def in_place(*arguments: Any) -> tuple[()]:
        *given, loss, correct = arguments
        for room, value in zip((loss, correct), flat(*given), strict=True):
            room.copy_(value)
        return ()

    arguments = (*held, x, y, loss, correct)
    return EvaluationGraph(
        fit, held, (x, y), (loss, correct), Launcher(program("eval", in_place, arguments), [arguments], pools)
    )


def _kinds(batch: Batch) -> Hashable:
    return tuple((tuple(part.shape), part.dtype) for part in batch)
