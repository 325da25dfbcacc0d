"""The weights of the largest gradients, pruned ones among them, in the memory of the survivors.

A network's own program runs up to where a layer's gradients are taken. An instruction beside it (`WholeLayers`) then
takes those of all the layer's weights, some rows at a time, and keeps the largest. So no layer's gradient is ever there
as a whole, and the next layer's follows in the same memory. Only the gradient of weights that several operations share
is, since it is there when the last of them has added its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lthfunc.sparse.workspace import Workspace
from lthfunc.trees.rng import key
from lthfunc.trees.types import Batch


def growth_draw(seed: int) -> int:
    """What random layers draw from as they compute the gradient by which weights grow."""
    return key(seed, "growth-dropout") % 2**32


def places_of_largest(
    running: Workspace, batch: Batch, draw: tuple[int, int], taken: Mapping[str, Tensor], counts: Mapping[str, int],
    loss: Callable[[Workspace], object] | None = None,
) -> dict[str, Tensor] | None:  # fmt: skip
    """Where the largest magnitudes of a layer's gradients lie, rising; None where one is NaN.

    running: of a network, `aside`, with a program that runs in parts. batch: as the data set stores it, no larger than
    the program's. draw: (step, seed), by which random layers draw. taken: places that are left out, rising. counts:
    how many to find. loss: hands the gradient of the outputs in, where the program has no loss of its own.
    """
    (x, y), (step, seed), layers, machine = batch, draw, running.program.whole_layers(), torch.ops.lthfunc
    found = {name: torch.empty(count, dtype=torch.int64) for name, count in counts.items()}

    def run(first: int, last: int) -> None:
        running.run(x[None], y[None], 1, step, growth_draw(seed), within=(first, last))

    at = 0 if loss is None else running.program.forward
    if loss is not None:
        run(0, at)
        loss(running)
    each = Counter(name for name, _ in layers.steps)
    sums = {name: torch.zeros(layers.sizes[name]) for name in taken if each[name] != 1}
    for number, (name, before) in enumerate(layers.steps):
        if name not in taken:
            continue
        run(at, before)
        at, memory = before, (layers.code.verified, number, running.activations, len(x))
        if name in sums:
            machine.add_layer_gradients.default(*memory, sums[name])
        elif not machine.largest_gradients.default(*memory, taken[name], found[name]):
            return None
    for name, gradient in sums.items():
        if gradient.isnan().any():
            return None
        machine.largest.default(gradient.abs_(), taken[name], found[name])
    return found
