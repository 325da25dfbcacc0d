"""Gradients of all weights by the machine, pruned ones among them: by their size RigL's weights grow."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from lthfunc.sparse.capture import captured
from lthfunc.sparse.program import Epilogue, Stored, program_of
from lthfunc.sparse.python_losses import computes_loss
from lthfunc.sparse.workspace import Workspace
from lthfunc.training.engines.interface import Work
from lthfunc.trees.ops import scaled
from lthfunc.trees.rng import key
from lthfunc.trees.types import Batch, Params


class GrowthGradients(threading.local):
    """Takes them on a program of the dense network, which is made once and serves all masks; each thread has its own.

    Their bits don't depend on the number of threads, and differ from PyTorch's by rounding.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._made: tuple[Stored, int, Workspace] | None = None

    def magnitudes(
        self, network: Workspace, names: Iterable[str], batch: Batch, stored: Stored, draw: tuple[int, int]
    ) -> Params | None:
        """Of the loss of a batch, by the names of weights; None where the machine has no such loss, or some are NaN.

        network: its survivors. batch: as the data set stores it. draw: (step, seed), by which random layers draw.
        """
        if not computes_loss(self._work):
            return None
        x, y = batch
        if self._work.augment is not None:  # inputs are stored scaled then
            x = scaled(x, self._work.scale)
        dense = self._workspace(network, stored, len(x))
        _spread(network, dense)
        step, seed = draw[0], key(draw[1], "growth-dropout") % 2**32
        dense.run(x[None], y[None], 1, step, seed, within=(0, dense.program.backward))
        if dense.gradients.sum().isnan():
            return None
        parts = dense.parts(dense.gradients.abs())
        return {name: parts[name].view(dense.shapes[name]) for name in names}

    def _workspace(self, network: Workspace, stored: Stored, examples: int) -> Workspace:
        folded = network.program.folded
        if self._made is not None and self._made[:2] == (stored, examples) and self._made[2].program.fits(folded):
            return self._made[2]
        graph = captured(self._work.model, stored.shape, training=True)
        params = network.dense(network.values)
        buffers = {name: leaf.clone() for name, leaf in self._work.model.training.named_buffers()} | folded
        program = program_of(graph, params, buffers, {}, batch=examples, stored=stored, epilogue=Epilogue())
        made = Workspace(program, params, buffers)
        self._made = stored, examples, made
        return made


def _spread(network: Workspace, dense: Workspace) -> None:
    """Give a dense workspace the values of survivors, zeros besides, those of frozen weights and running statistics."""
    dense.memory[len(dense.values) :] = network.memory[len(network.values) :]
    parts, into = network.parts(network.values), dense.parts(dense.values)
    for name, places in network.program.positions.items():
        into[name].zero_().index_copy_(0, places, parts[name])
    for name in parts.keys() - network.program.positions.keys():
        into[name].copy_(parts[name])
    for name, at in network.program.statistics.items():
        count, first = network.sizes[name], dense.program.statistics[name]
        dense.constants[first : first + count] = network.constants[at : at + count]
