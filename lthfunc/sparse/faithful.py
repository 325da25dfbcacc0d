"""Whether a traced graph computes what its module does: outputs, and the gradients that training takes.

A graph of operations doesn't hold what autograd is told besides: a backward of one's own (`torch.autograd.Function`), a
hook on a tensor's gradient, a decision by `requires_grad` or `torch.is_grad_enabled()`. So both are called once, on a
few random examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter

from lthfunc.trees.global_rng import seeded_generators
from lthfunc.trees.ops import clone
from lthfunc.trees.outputs import outputs_of
from lthfunc.trees.types import Buffers, Params

if TYPE_CHECKING:
    from lthfunc.sparse.capture import Captured

#: By which part of a tensor, and of the largest one, both may differ: they round alike but for fused kernels.
_OF_ITSELF, _OF_LARGEST = 0.01, 1e-4
_SEED = 0
#: (parameters and buffers, inputs) -> what a module gives for them.
Call = Callable[[dict[str, Tensor], tuple[Tensor, ...]], Any]
_Outputs = Callable[[Params, Buffers, tuple[Tensor, ...]], list[Tensor]]


def why_unfaithful(
    captured: Captured, call: Call, params: Params, buffers: Buffers, inputs: tuple[Tensor, ...], *, training: bool
) -> str:
    """What the graph computes differently, as the end of a sentence that begins with the module's name; "" for nothing.

    call: of the module; params, buffers: the module's; inputs: as the graph was traced on. They stay as they are. A
    module that fails on real values is not judged: whoever calls it is told so.
    """
    draw = torch.Generator().manual_seed(_SEED)
    params = {name: _shaken(leaf, draw) for name, leaf in params.items()}
    x = tuple(_inputs_like(each, draw) for each in inputs)
    run = Interpreter(GraphModule(captured.constants, captured.graph))

    def of_module(params: Params, buffers: Buffers, x: tuple[Tensor, ...]) -> list[Tensor]:
        return outputs_of(call({**params, **buffers}, x)).tensors

    def of_graph(params: Params, buffers: Buffers, x: tuple[Tensor, ...]) -> list[Tensor]:
        leaves = [params[name] for name in captured.params] + [buffers[name] for name in captured.buffers]
        found = run.run(*leaves, *x, enable_io_processing=False)
        return list(found) if isinstance(found, (list, tuple)) else [found]

    computed = _with_gradients if training else _outputs
    try:
        wanted = computed(of_module, params, buffers, x)
    except Exception:
        return ""
    found = computed(of_graph, params, buffers, x)
    return next(_differences(wanted, found), "")


def _outputs(function: _Outputs, params: Params, buffers: Buffers, x: tuple[Tensor, ...]) -> dict[str, Tensor]:
    with seeded_generators(_SEED), torch.no_grad():
        found = function(*clone((params, buffers, x)))  # which a module may write into
    return {f"output {number}": tensor for number, tensor in enumerate(found)}


def _with_gradients(function: _Outputs, params: Params, buffers: Buffers, x: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Outputs, and by the name of each leaf that has one the gradient of the outputs in some direction."""

    def objective(params: Params, buffers: Buffers, x: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
        outputs = function(*clone((params, buffers, x)))  # which a module may write into
        draw = torch.Generator().manual_seed(_SEED)
        total = torch.zeros(())
        for each in outputs:
            if each.is_floating_point() or each.is_complex():
                directions = torch.randn(each.shape, generator=draw, dtype=each.dtype)
                total = total + (each * directions).real.sum()
        return total, outputs

    with seeded_generators(_SEED), torch.enable_grad():
        gradients, outputs = torch.func.grad(objective, has_aux=True)(params, buffers, x)
    return {**{f"output {number}": tensor for number, tensor in enumerate(outputs)}, **gradients}


def _differences(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Iterator[str]:
    norms = [_norm(leaf) for name, leaf in wanted.items() if not name.startswith("output ")]
    largest = max((norm for norm in norms if math.isfinite(norm)), default=0.0)
    for name, leaf in wanted.items():
        own, is_output = _norm(leaf), name.startswith("output ")
        apart = _norm(_wide(found[name]) - _wide(leaf)) if leaf.shape == found[name].shape else float("inf")
        if apart <= _OF_ITSELF * own + (0.0 if is_output else _OF_LARGEST * largest) or not math.isfinite(own):
            continue
        if is_output:
            yield (
                ": its outputs are not those of the operations in it; it may ask whether gradients are on "
                "(torch.is_grad_enabled(), requires_grad)"
            )
        yield (
            f": the gradient of {name} is not that of the operations in it; a torch.autograd.Function, a gradient's "
            "hook or a question for requires_grad may change it"
        )


def _norm(leaf: Tensor) -> float:
    return float(_wide(leaf).norm())


def _wide(leaf: Tensor) -> Tensor:
    return leaf.detach().to(torch.complex128 if leaf.is_complex() else torch.float64)


def _shaken(leaf: Tensor, draw: torch.Generator) -> Tensor:
    """A parameter a little away from where it is, since zeros would hide what lies before them."""
    leaf = leaf.detach()
    if not leaf.is_floating_point() and not leaf.is_complex():
        return leaf
    spread = float(leaf.abs().std()) if leaf.numel() > 1 else 0.0
    return leaf + (0.1 * spread or 0.02) * torch.randn(leaf.shape, generator=draw, dtype=leaf.dtype)


def _inputs_like(example: Tensor, draw: torch.Generator) -> Tensor:
    if example.is_floating_point():
        return torch.rand(example.shape, generator=draw, dtype=example.dtype)
    return torch.randint(0, 2, example.shape, generator=draw, dtype=example.dtype)
