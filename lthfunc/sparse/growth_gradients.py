"""Weights that grow by the size of their gradients, as RigL's do: the machine takes these of all weights."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from functools import partial

from torch import Tensor

from lthfunc.sparse.capture import captured
from lthfunc.sparse.exchange import Growing, by_scores
from lthfunc.sparse.largest_gradients import growth_draw, places_of_largest
from lthfunc.sparse.program import IN_PARTS, Epilogue, Lowered, Program, Stored, lower, program_of
from lthfunc.sparse.python_losses import OutputsLoss, computes_loss
from lthfunc.sparse.updates import machine_numbers
from lthfunc.sparse.workspace import Workspace
from lthfunc.training.engines.interface import Work
from lthfunc.training.results import GradientGrowth
from lthfunc.trees.ops import scaled
from lthfunc.trees.types import Batch, Buffers, Masks, Params


class GrowthGradients(threading.local):
    """Takes them layer by layer on the network's own program or, of a batch larger than a step's, all at once on that
    of the dense network, which is made once and serves all masks. Each thread has its own.

    Their bits don't depend on the number of threads, and differ from PyTorch's by rounding.
    """

    def __init__(self, work: Work) -> None:
        self._work, self._loss = work, OutputsLoss(work)
        self._made: tuple[Stored, int, Workspace] | None = None
        self._in_parts: tuple[tuple[Stored, int], Lowered] | None = None

    def growing(
        self, network: Workspace, growth: GradientGrowth, stored: Stored, draw: tuple[int, int], masks: Masks
    ) -> Growing:
        """What grows of a network. stored: how its program reads inputs. draw: (step, seed), by which random layers
        draw. masks: of the network as it is."""

        def loss(running: Workspace, batch: Batch) -> None:
            self._loss.hand_in(running, batch, masks, draw[0])

        def grow(taken: Mapping[str, Tensor], counts: Mapping[str, int]) -> Mapping[str, Tensor]:
            batch = growth.batch()
            # Of tokens that are examples, whole layers' instructions take no batch.
            if len(batch[0]) <= network.program.batch and not network.program.tokens:
                running, batch = network.aside(self._program_in_parts(network, stored)), self._read(batch)
                pythons = None if computes_loss(self._work) else partial(loss, batch=batch)
                found: Mapping[str, Tensor] | None = places_of_largest(running, batch, draw, taken, counts, pythons)
            else:
                magnitudes = self.magnitudes(network, taken, batch, stored, draw)
                found = None if magnitudes is None else by_scores(magnitudes)(taken, counts)
            return by_scores(growth.scores())(taken, counts) if found is None else found

        return grow

    def _read(self, batch: Batch) -> Batch:
        """A batch as programs read it: inputs are stored scaled where they are augmented."""
        x, y = batch
        return (x if self._work.augment is None else scaled(x, self._work.scale)), y

    def _program_in_parts(self, network: Workspace, stored: Stored) -> Program:
        """The network's program, or the same without memory of one tile at a time, which needs it to run as a whole."""
        program = network.program
        if not program.code.local:
            return program
        given, made = (stored, program.batch), self._in_parts
        if (
            made is None
            or made[0] != given
            or not made[1].program.fits(program.folded)
            or not made[1].move_to(program.positions)
        ):
            graph = captured(self._work.model, stored.shape, training=True)
            loss = "cross_entropy" if computes_loss(self._work) else None
            epilogue = Epilogue(loss, update=machine_numbers(self._work.optimizer) or ())
            made = self._in_parts = given, lower(
                graph, *self._leaves(network), {}, batch=program.batch, stored=stored, epilogue=epilogue,
                positions=program.positions, builder=IN_PARTS,
            )  # fmt: skip
        return made[1].program

    def _leaves(self, network: Workspace) -> tuple[Params, Buffers]:
        """Of their shapes; those buffers that a program is made of as they are."""
        buffers = {name: leaf.clone() for name, leaf in self._work.model.training.named_buffers()}
        return network.dense(network.values), buffers | network.program.folded

    def magnitudes(
        self, network: Workspace, names: Iterable[str], batch: Batch, stored: Stored, draw: tuple[int, int]
    ) -> Params | None:
        """Of the loss of a batch, by the names of weights; None where the machine has no such loss, or some are NaN.

        network: its survivors. batch: as the data set stores it. draw: (step, seed), by which random layers draw.
        """
        if not computes_loss(self._work):
            return None
        x, y = self._read(batch)
        dense = self._workspace(network, stored, len(x))
        _spread(network, dense)
        within = (0, dense.program.backward)
        dense.run(x[None], y[None], 1, draw[0], growth_draw(draw[1]), within=within)
        if dense.gradients.sum().isnan():
            return None
        parts = dense.parts(dense.gradients.abs())
        return {name: parts[name].view(dense.shapes[name]) for name in names}

    def _workspace(self, network: Workspace, stored: Stored, examples: int) -> Workspace:
        folded = network.program.folded
        if self._made is not None and self._made[:2] == (stored, examples) and self._made[2].program.fits(folded):
            return self._made[2]
        graph = captured(self._work.model, stored.shape, training=True)
        params, buffers = self._leaves(network)
        program = program_of(graph, params, buffers, {}, batch=examples, stored=stored, epilogue=Epilogue())
        made = Workspace(program, params, buffers)
        self._made = stored, examples, made
        return made


def _spread(network: Workspace, dense: Workspace) -> None:
    """Give a dense workspace the values of survivors, zeros besides, those of frozen weights and running statistics."""
    frozen = network.frozen()
    for name, leaf in dense.frozen().items():
        if name in frozen:  # else it is a table of places, of which the program is made
            leaf.copy_(frozen[name])
    parts, into = network.parts(network.values), dense.parts(dense.values)
    for name, places in network.program.positions.items():
        into[name].zero_().index_copy_(0, places, parts[name])
    for name in parts.keys() - network.program.positions.keys():
        into[name].copy_(parts[name])
    for name, at in network.program.statistics.items():
        count, first = network.sizes[name], dense.program.statistics[name]
        dense.constants[first : first + count] = network.constants[at : at + count]
