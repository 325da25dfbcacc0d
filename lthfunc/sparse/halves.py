"""A program's two halves as an operation of autograd, on a workspace for each forward pass that awaits its backward."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lthfunc.sparse.pages import zeros
from lthfunc.sparse.regions import RegionProgram
from lthfunc.sparse.tile_buffers import LANES

_NOTHING = torch.zeros(0)
#: Whether the backward pass that runs keeps its graph. Where PyTorch doesn't say, it counts as kept.
_keeps_graph: Callable[[], bool] = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


class _Workspace:
    """The memory of one forward pass and of its backward pass."""

    def __init__(self, program: RegionProgram) -> None:
        code = program.code
        with torch.inference_mode(False):  # since it is used in other modes later
            # Zeros, since halos and tiles that are not full are read and never written.
            self.activations = zeros(LANES * max(1, code.vectors))
            self.values, self.constants = torch.zeros(code.values), code.constants.clone()
        places = {name: self.constants[at.first : at.first + at.size] for name, at in program.statistics.items()}
        self.statistics, self.moved = list(places.values()), [places[name] for name in program.moved]


class _Lease:
    """A workspace in use; it is given back by `end`, or when nothing refers to it any more."""

    #: Workspaces that are kept for later passes; here, since the last leases end after Python has cleared the module.
    _KEPT = 4

    def __init__(self, owner: Halves) -> None:
        self._owner = owner
        self.workspace: _Workspace | None = owner.workspaces.pop() if owner.workspaces else _Workspace(owner.program)

    def end(self) -> None:
        workspace, self.workspace = self.workspace, None
        if workspace is not None and len(self._owner.workspaces) < self._KEPT:
            self._owner.workspaces.append(workspace)

    __del__ = end


class Halves:
    """Runs a program: as a part of autograd's graph where gradients are on. workspaces: those that are free."""

    def __init__(self, program: RegionProgram) -> None:
        self.program, self.workspaces = program, list[_Workspace]()
        self._verified, self._end = program.code.verified, len(program.code.rows)
        self._trained = [leaf.size for name, leaf in program.leaves.items() if name not in program.frozen]

    def __call__(
        self, inputs: Sequence[Tensor], leaves: Sequence[Tensor], buffers: Mapping[str, Tensor]
    ) -> list[Tensor]:
        """The values that the part gives.

        inputs: float32 (examples, …), as many in each. leaves: the parameters in the program's order, masked ones as
        vectors of survivors. buffers: by name; running statistics are changed.
        """
        program = self.program
        seed = int(torch.randint(2**32, ())) if program.draws else 0
        if program.gradients:
            found = _Region.apply(self, seed, buffers, *inputs, *leaves)
            outputs = list(found) if isinstance(found, tuple) else [found]
        else:
            lease = _Lease(self)
            with torch.no_grad():
                outputs = self.forward(lease, seed, inputs, leaves, buffers)
            lease.end()
        examples = len(inputs[0])
        return [
            outputs[number] if program.outputs[number] == shape else outputs[number].reshape(examples, *shape)
            for number, shape in program.given
        ]

    def forward(
        self,
        lease: _Lease,
        seed: int,
        inputs: Sequence[Tensor],
        leaves: Sequence[Tensor],
        buffers: Mapping[str, Tensor],
    ) -> list[Tensor]:
        """The outputs."""
        workspace, program, examples = lease.workspace, self.program, len(inputs[0])
        assert workspace is not None
        if any(len(each) != examples for each in inputs):
            raise ValueError(f"sparse_module: takes as many examples in all of {[len(each) for each in inputs]}")
        if leaves:
            torch.cat([leaf.reshape(-1) for leaf in leaves], out=workspace.values)
        if workspace.statistics:
            torch._foreach_copy_(workspace.statistics, [buffers[name] for name in program.statistics])
        outputs, memory = _made(examples, program.outputs)
        if examples:
            self._run(workspace, (0, program.forward), examples, seed, inputs=_joined(inputs), outputs=memory)
        if workspace.moved:
            torch._foreach_copy_([buffers[name] for name in program.moved], workspace.moved)
        return outputs

    def backward(
        self, lease: _Lease, seed: int, examples: int, grads: Sequence[Tensor]
    ) -> tuple[list[Tensor | None], Sequence[Tensor]]:
        """(the gradients of the inputs, None where none is wanted; those of the leaves with any, as vectors)."""
        workspace, program = lease.workspace, self.program
        if workspace is None:
            raise RuntimeError(
                "Trying to backward through the graph a second time; specify retain_graph=True in the first backward"
            )
        gradients = torch.empty(program.code.trained)
        wanted = [shape for shape, wants in zip(program.inputs, program.wanted, strict=True) if wants]
        found, memory = _made(examples, wanted)
        if examples:
            self._run(
                workspace, (program.forward, self._end), examples, seed, outputs=_joined(grads), gradients=gradients,
                input_gradients=memory,
            )  # fmt: skip
        else:
            gradients.zero_()
        if not _keeps_graph():
            lease.end()
        handed = iter(found)
        of_inputs = [next(handed) if wants else None for wants in program.wanted]
        return of_inputs, torch.split_with_sizes(gradients, self._trained)

    def _run(
        self, workspace: _Workspace, part: tuple[int, int], examples: int, seed: int, *, inputs: Tensor = _NOTHING,
        outputs: Tensor, gradients: Tensor = _NOTHING, input_gradients: Tensor = _NOTHING,
    ) -> None:  # fmt: skip
        partials = _NOTHING
        if len(gradients) and torch.get_num_threads() > 1:  # each tile's, beside each other
            partials = torch.empty(-(-examples // LANES) * len(gradients))
        torch.ops.lthfunc.run_half.default(
            self._verified, *part, workspace.activations, workspace.values, gradients, partials, workspace.constants,
            inputs, outputs, input_gradients, examples, seed,
        )  # fmt: skip


def _made(examples: int, shapes: Sequence[tuple[int, ...]]) -> tuple[list[Tensor], Tensor]:
    """(tensors, the memory that they share, one after the other); they are no views of it for autograd, which would
    not let anybody change them in place."""
    if len(shapes) == 1:
        one = torch.empty(examples, *shapes[0])
        return [one], one
    if not shapes:
        return [], _NOTHING
    sizes = [examples * math.prod(shape) for shape in shapes]
    memory = torch.empty(sum(sizes))
    parts = zip(memory.split(sizes), shapes, strict=True)
    return [torch.empty(0).set_(part.view(examples, *shape)) for part, shape in parts], memory


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors one after the other in one memory, as float32."""
    if len(tensors) == 1:
        return tensors[0].float().contiguous()
    return torch.cat([each.reshape(-1).float() for each in tensors])


class _Region(torch.autograd.Function):
    """(halves, seed, buffers, *inputs, *leaves) -> outputs."""

    @staticmethod
    def forward(ctx: Any, halves: Halves, seed: int, buffers: Mapping[str, Tensor], *tensors: Tensor) -> Any:
        count = len(halves.program.inputs)
        ctx.halves, ctx.seed, ctx.examples, ctx.lease = halves, seed, len(tensors[0]), _Lease(halves)
        trained = len(tensors) - len(halves.program.frozen)
        ctx.shapes = [leaf.shape for leaf in tensors[count:trained]]
        outputs = halves.forward(ctx.lease, seed, tensors[:count], tensors[count:], buffers)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        inputs, leaves = ctx.halves.backward(ctx.lease, ctx.seed, ctx.examples, grads)
        shaped = [leaf if len(shape) == 1 else leaf.view(shape) for leaf, shape in zip(leaves, ctx.shapes, strict=True)]
        return None, None, None, *inputs, *shaped, *[None] * len(ctx.halves.program.frozen)
