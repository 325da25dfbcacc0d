"""A ticket as a plain callable that computes its surviving weights alone."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any, NamedTuple, NoReturn, TypeVar

import torch
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.errors import UserError
from lthfunc.sparse.capture import captured
from lthfunc.sparse.kernels.build import load_kernels
from lthfunc.sparse.program import Epilogue, Stored, program_of
from lthfunc.sparse.sequence_inputs import length_of
from lthfunc.sparse.tile_buffers import LANES
from lthfunc.sparse.token_lanes import LanesProgram, lanes_program, saves_work
from lthfunc.sparse.workspace import Workspace, side_by_side
from lthfunc.trees.model import Model
from lthfunc.trees.ops import apply_masks, clone
from lthfunc.trees.outputs import map_outputs, outputs_of
from lthfunc.trees.types import Scale, Ticket, TrainState

#: Examples computed at a time.
_CHUNK = 512
#: Programs that are kept, those that were used last: of inputs of one shape all that batches of any size need.
_KEPT = _CHUNK // LANES + 1

T = TypeVar("T")


class _Ready(NamedTuple):
    """What a call for a batch of some size needs.

    single: whether kernels for one example alone run it. key: under which its workspace is kept.
    """

    infer: Any
    program: int
    workspace: Workspace
    single: bool
    key: object


class SparseProgram:
    """Maps inputs (n, ...) to what the network gives, outputs (n, …), float32 on the CPU, in evaluation mode.

    It is made ready for a size of batch when that size first comes, in a few milliseconds, and keeps its own copy of
    the weights. Threads may share it: it computes their batches one after the other. It can be copied and pickled, if
    the module can.
    """

    def __init__(self, model: Model, ticket: Ticket | TrainState, scale: Scale | None = None) -> None:
        load_kernels()
        masks = clone(ticket.masks)
        params = apply_masks(ticket.params, masks)
        self._model, self._scale, self._masks = model, scale, masks
        self._params = {name: leaf if name in masks else leaf.clone() for name, leaf in params.items()}
        self._buffers = clone(ticket.buffers)
        self._begin()

    def _begin(self) -> None:
        """With nothing made ready. Of both kinds of programs the last used come last."""
        self._ready: dict[object, _Ready] = {}
        self._workspaces = OrderedDict[object, Workspace]()
        self._lanes = OrderedDict[object, LanesProgram]()
        self._mixing: set[int] = set()  # lengths of sequences whose tokens cannot be lanes
        self._lock = threading.Lock()  # PyTorch lets other threads run while an operation does

    def __getstate__(self) -> dict[str, Any]:
        model = self._model._replace(init=_no_values, redraw=None)  # closures, which a program never calls
        return {
            "_model": model, "_scale": self._scale, "_params": self._params, "_buffers": self._buffers,
            "_masks": self._masks,
        }  # fmt: skip

    def __setstate__(self, state: dict[str, Any]) -> None:
        load_kernels()
        self.__dict__.update(state)
        self._begin()

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
        length = length_of(self._model, Stored(tuple(x.shape[1:]), x.dtype, self._scale))
        lanes = self._lanes_of(x) if length is not None and saves_work(len(x), length) else None
        if lanes is not None:
            with self._lock:
                return lanes(x)
        with self._lock:
            ready = self._ready.get((x.shape, x.dtype))
            if ready is None:
                ready = self._ready[x.shape, x.dtype] = self._made(x)
            infer, program, workspace, single, key = ready
            self._workspaces.move_to_end(key)
            outputs: Tensor = infer(
                program, workspace.activations, workspace.memory, workspace.constants, x.contiguous(), single
            )
        if workspace.program.gives_rows:
            return outputs
        return workspace.program.rebuilt(side_by_side(outputs.view(-1), len(x), workspace.program.outputs))

    def _lanes_of(self, x: Tensor) -> LanesProgram | None:
        """The program for a few sequences of tokens, whose lanes are tokens; None where the network has none."""
        with self._lock:
            found = self._lanes.get(x.shape)
            if found is None and x.shape[1] not in self._mixing:
                found = lanes_program(self._model, self._params, self._buffers, self._masks, x)
                if found is None:
                    self._mixing.add(x.shape[1])
            if found is not None:
                _keep(self._lanes, x.shape, found)
            return found

    def _made(self, x: Tensor) -> _Ready:
        """What a call for a batch of this size needs. One memory serves all batches of as many tiles, and one another
        example alone, which has its own layout: what lies between its rows must stay zero."""
        tiles = -(-len(x) // LANES)
        key = len(x) == 1, tiles, x.shape[1:], x.dtype
        workspace = self._workspaces.get(key)
        if workspace is None:
            workspace = self._workspace(x, tiles * LANES)
            if _keep(self._workspaces, key, workspace):
                self._ready = {size: each for size, each in self._ready.items() if each.key in self._workspaces}
        program = workspace.program.code.verified
        single = len(x) == 1 and torch.ops.lthfunc.runs_single(program)
        return _Ready(torch.ops.lthfunc.infer.default, program, workspace, single, key)

    def _workspace(self, x: Tensor, capacity: int) -> Workspace:
        if x.device.type != "cpu" or (x.dtype == torch.uint8 and self._scale is None):
            raise UserError("sparse_program: takes float32 on the CPU, or uint8 where a scale was given")
        stored, epilogue = Stored(tuple(x.shape[1:]), x.dtype, self._scale), Epilogue(None, gradients=False)
        graph = captured(self._model, stored.shape, training=False)
        program = program_of(
            graph, self._params, self._buffers, self._masks, batch=capacity, stored=stored, epilogue=epilogue
        )
        return Workspace(program, self._params, self._buffers)


def _keep(kept: OrderedDict[object, T], key: object, made: T) -> bool:
    """Keep what was made or used now; returns whether what was not used for longest had to go."""
    kept[key] = made
    kept.move_to_end(key)
    full = len(kept) > _KEPT
    if full:
        kept.popitem(last=False)
    return full


def _no_values(seed: int) -> NoReturn:
    raise UserError("sparse_program: draws no values for another seed; ask the model that it was made of")


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
