"""A module as compiled code, for each batch size on its first call."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lthfunc.deployment.timing import in_turn, repeated
from lthfunc.errors import UserError
from lthfunc.training.engines.cuda_graphs import Launcher
from lthfunc.training.engines.reused_memory import GraphPools
from lthfunc.training.engines.toolchain import why_not
from lthfunc.training.engines.tracing import CompiledFunction, compiled
from lthfunc.trees.module_calls import functional_call
from lthfunc.trees.ops import flattened, tree_map
from lthfunc.trees.outputs import outputs_of

_LAYOUTS = (torch.contiguous_format, torch.channels_last)
#: Seconds per timing and timings of each memory layout.
_SECONDS, _REPEATS = 0.03, 5


class Compiled:
    """Computes a module's outputs in evaluation mode, with convolutions in the faster memory layout.

    Where nothing can be compiled (no C++ compiler, or a forward that depends on values) the module runs eagerly;
    why_eager: the reason, once such a forward was found.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module, self._name = module, name
        leaves: dict[str, Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        self._leaves, self._rebuilt = flattened(tree_map(torch.Tensor.detach, leaves))
        self._images = any(leaf.ndim == 4 for leaf in self._leaves)
        self._ready: dict[Any, Any] = {}
        self._pools = GraphPools()
        self.why_eager: str | None = None

    def __call__(self, x: Tensor) -> Any:
        """The outputs for a batch, structured as the module returns them."""
        key = x.shape, x.dtype
        ready = self._ready.get(key)
        if ready is None:
            ready = self._ready[key] = self._made(x)
        program, leaves, layout, traced = ready
        given = x.contiguous(memory_format=layout)
        if traced.changes_input and given is x:
            given = x.clone()
        if given.stride() != traced.strides:  # along a single channel, say, any stride counts as contiguous;
            given = given.as_strided(given.shape, traced.strides)  # but a convolution lays its outputs out by it
        found = program(*leaves, given)
        return found[0] if traced.single else traced.rebuilt(found)

    def _made(self, x: Tensor) -> Any:
        made = {_LAYOUTS[0]: self._in(_LAYOUTS[0], x)}
        if self._images and x.ndim == 4:
            with suppress(UserError):  # a network may view its images in a way that only the plain layout allows
                made[_LAYOUTS[1]] = self._in(_LAYOUTS[1], x)
        if len(made) == 1:
            return made[_LAYOUTS[0]]

        runs = {
            layout: repeated(partial(program, *leaves, x.clone(memory_format=layout)))
            for layout, (program, leaves, *_) in made.items()
        }
        with torch.no_grad():
            rates = in_turn(runs, seconds=_SECONDS, repeats=_REPEATS, device=str(x.device))
        return made[max(rates, key=lambda layout: max(rates[layout]))]

    def _in(self, layout: torch.memory_format, x: Tensor) -> Any:
        leaves = [leaf.contiguous(memory_format=layout) if leaf.ndim == 4 else leaf for leaf in self._leaves]
        given = x.clone(memory_format=layout)
        traced = _Traced(given.stride())

        def forward(*arguments: Tensor) -> list[Tensor]:
            taken = arguments[-1]
            before = taken._version
            outputs = outputs_of(functional_call(self.module, self._rebuilt(arguments[:-1]), (taken,)))
            traced.single, traced.rebuilt = outputs.single, outputs.rebuilt
            traced.changes_input = taken._version != before
            return outputs.tensors

        with torch.no_grad():
            if why_not(x.device.type) is not None:
                forward(*leaves, given)
                return forward, leaves, layout, traced
            try:
                program = compiled(forward, (*leaves, given), self._name)
                if x.is_cuda:
                    program = _Graphed(program, leaves, given, self._pools)
                return program, leaves, layout, traced
            except UserError as error:
                if layout is not _LAYOUTS[0]:
                    raise
                self.why_eager = str(error).partition("; ")[0]
                forward(*leaves, given.clone())
                return forward, leaves, layout, traced


class _Graphed:
    """A program as a CUDA graph from the second call on: launching small kernels takes longer than running them.

    Inputs are copied into the graph's static input, and outputs out of its static outputs.
    """

    def __init__(self, program: CompiledFunction, leaves: Sequence[Tensor], x: Tensor, pools: GraphPools) -> None:
        self._x = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device).copy_(x)
        found = [torch.empty_like(output) for output in program(*leaves, self._x)]
        self._found = found

        def in_place(*arguments: Tensor) -> tuple[()]:
            for room, output in zip(found, program(*arguments), strict=True):
                room.copy_(output)
            return ()

        self._launcher = Launcher(in_place, [(*leaves, self._x)], pools)

    def __call__(self, *arguments: Tensor) -> list[Tensor]:
        self._x.copy_(arguments[-1])
        self._launcher.launch(1, None)
        return [output.clone() for output in self._found]


class _Traced:
    """What tracing a module found: the structure of its outputs, and whether it changes its input in place.

    strides: of the traced input, which compiled code assumes.
    """

    single, changes_input = True, False
    rebuilt: Any = None

    def __init__(self, strides: tuple[int, ...]) -> None:
        self.strides = strides
