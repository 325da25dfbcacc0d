"""A ticket as a plain callable that computes its surviving weights alone."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.errors import UserError
from lthfunc.sparse.capture import captured
from lthfunc.sparse.kernels.build import load_kernels
from lthfunc.sparse.program import Epilogue, Stored, program_of
from lthfunc.sparse.tile_buffers import LANES
from lthfunc.sparse.token_lanes import LanesProgram, lanes_program, saves_work
from lthfunc.sparse.workspace import Workspace, side_by_side
from lthfunc.trees.model import Model
from lthfunc.trees.ops import apply_masks
from lthfunc.trees.outputs import map_outputs, outputs_of
from lthfunc.trees.types import Scale, Ticket, TrainState

#: Examples computed at a time.
_CHUNK = 512


class SparseProgram:
    """Maps inputs (n, ...) to what the network gives, outputs (n, …), float32 on the CPU, in evaluation mode.

    It is made ready for a size of batch when that size first comes, in a few milliseconds, and keeps its own copy of
    the weights. Threads may share it: it computes their batches one after the other.
    """

    def __init__(self, model: Model, ticket: Ticket | TrainState, scale: Scale | None = None) -> None:
        load_kernels()
        self._model, self._scale = model, scale
        self._params = apply_masks(ticket.params, ticket.masks)
        self._buffers, self._masks = ticket.buffers, ticket.masks
        self._ready: dict[object, Any] = {}
        self._workspaces: dict[object, Workspace] = {}
        self._lanes: dict[object, LanesProgram] = {}
        self._mixing: set[int] = set()  # lengths of sequences whose tokens cannot be lanes
        self._lock = threading.Lock()  # PyTorch lets other threads run while an operation does

    def __call__(self, x: Tensor) -> Any:
        """What the network gives. x: float32, uint8 where a scale was given, or tokens (int64); on the CPU."""
        if len(x) == 0:  # of one example, none
            return map_outputs(lambda outputs: outputs[:0], self._outputs(x.new_zeros(1, *x.shape[1:])))
        if len(x) <= _CHUNK:
            return self._outputs(x)
        given = [self._outputs(part) for part in torch.split(x, _CHUNK)]
        if isinstance(given[0], Tensor):
            return torch.cat(given)
        apart = [outputs_of(each) for each in given]
        return apart[0].rebuilt([torch.cat(parts) for parts in zip(*(each.tensors for each in apart), strict=True)])

    def _outputs(self, x: Tensor) -> Any:
        lanes = self._lanes_of(x) if x.dtype == torch.int64 and x.ndim == 2 and saves_work(*x.shape) else None
        if lanes is not None:
            with self._lock:
                return lanes(x)
        with self._lock:
            ready = self._ready.get((x.shape, x.dtype))
            if ready is None:
                ready = self._ready[x.shape, x.dtype] = self._made(x)
            infer, program, workspace, single = ready
            outputs: Tensor = infer(
                program, workspace.activations, workspace.memory, workspace.constants, x.contiguous(), single
            )
        if workspace.program.gives_rows:
            return outputs
        return workspace.program.rebuilt(side_by_side(outputs.view(-1), len(x), workspace.program.outputs))

    def _lanes_of(self, x: Tensor) -> LanesProgram | None:
        """The program for a few sequences of tokens, whose lanes are tokens; None where the network has none."""
        with self._lock:
            if x.shape not in self._lanes and x.shape[1] not in self._mixing:
                found = lanes_program(self._model, self._params, self._buffers, self._masks, x)
                if found is None:
                    self._mixing.add(x.shape[1])
                else:
                    self._lanes[x.shape] = found
            return self._lanes.get(x.shape)

    def _made(self, x: Tensor) -> Any:
        """What a call for a batch of this size needs. One memory serves all batches of as many tiles, and one another
        example alone, which has its own layout: what lies between its rows must stay zero."""
        tiles = -(-len(x) // LANES)
        key = len(x) == 1, tiles, x.shape[1:], x.dtype
        workspace = self._workspaces.get(key)
        if workspace is None:
            workspace = self._workspaces[key] = self._workspace(x, tiles * LANES)
        program = workspace.program.code.verified
        single = len(x) == 1 and torch.ops.lthfunc.runs_single(program)
        return torch.ops.lthfunc.infer.default, program, workspace, single

    def _workspace(self, x: Tensor, capacity: int) -> Workspace:
        if x.device.type != "cpu" or (x.dtype == torch.uint8 and self._scale is None):
            raise UserError("sparse_program: takes float32 on the CPU, or uint8 where a scale was given")
        stored, epilogue = Stored(tuple(x.shape[1:]), x.dtype, self._scale), Epilogue(None, gradients=False)
        graph = captured(self._model, stored.shape, training=False)
        program = program_of(
            graph, self._params, self._buffers, self._masks, batch=capacity, stored=stored, epilogue=epilogue
        )
        return Workspace(program, self._params, self._buffers)


@public
def sparse_program(model: Model, ticket: Ticket | TrainState, scale: Scale | None = None) -> SparseProgram:
    """The ticket's network on its surviving weights alone: a callable from inputs to outputs, on a CPU.

    Several outputs come as the network has them: in a tuple, a dictionary or a class of its own.

    scale: how stored inputs are scaled (``data.scale``); without one, inputs are taken as they are.

    Raises UserError where masks and model don't fit, naming the first leaf that differs; where the kernels cannot be
    built; and, at the first call, for an operation that has no lowering.

    >>> model = lf.from_module(nn.Linear(4, 2))
    >>> run = lf.sparse_program(model, lf.prune(fraction=0.5)(lf.init(model)))
    >>> run(torch.randn(3, 4)).shape
    torch.Size([3, 2])
    """
    return SparseProgram(model, ticket, scale)
