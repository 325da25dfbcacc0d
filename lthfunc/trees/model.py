"""A network as pure functions over trees, made from any `nn.Module`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lthfunc.errors import UserError
from lthfunc.trees.initial import Initialiser, glorot_normal
from lthfunc.trees.ops import full_masks
from lthfunc.trees.parts import Part, Unpacking
from lthfunc.trees.prunable import check_pure, chosen, fitting, usual
from lthfunc.trees.types import Buffers, Params, TrainState


class Model(NamedTuple):
    """The structure of a network; it holds no values that training changes.

    training, evaluating: the module in its two modes. prunable: names of the parameters that may be pruned,
    in module order. init: seed -> (params, buffers). tokens: whether inputs are whole numbers (n, length), as an
    embedding reads them. output: the output layer's weight, the last that is usually pruned.
    """

    name: str
    training: nn.Module
    evaluating: nn.Module
    prunable: tuple[str, ...]
    init: Callable[[int], tuple[Params, Buffers]]
    tokens: bool = False
    output: str = ""


def apply_training(model: Model, params: Params, buffers: Buffers, x: Tensor) -> tuple[Any, Buffers]:
    """Outputs, and the buffers after the call (BatchNorm updates its statistics); no argument is changed."""
    # A module in training mode writes into the buffers it is given, so it gets copies of its own; or it puts others
    # in their place, which the dictionary then holds.
    leaves = {**params, **{name: buffer.clone() for name, buffer in buffers.items()}}
    outputs = functional_call(model.training, leaves, (x,))
    return outputs, {name: leaves[name] for name in buffers}


def apply_evaluating(model: Model, params: Params, buffers: Buffers, x: Tensor) -> Any:
    """Outputs in evaluation mode (running statistics, no dropout)."""
    return functional_call(model.evaluating, (params, buffers), (x,))


def linear_inputs(model: Model, params: Params, buffers: Buffers, x: Tensor) -> dict[str, Tensor]:
    """What each linear layer with prunable weights reads in evaluation mode: its weight's name -> (..., features)."""
    owners = {name: name.rpartition(".")[0] for name in model.prunable}
    layers = {name for name, layer in model.evaluating.named_modules() if isinstance(layer, nn.Linear)}
    read = inputs_of(model.evaluating, layers, lambda module: functional_call(module, (params, buffers), (x,)))
    return {name: read[owner] for name, owner in owners.items() if owner in read}


def inputs_of(module: nn.Module, names: Collection[str], call: Callable[[nn.Module], Any]) -> dict[str, Tensor]:
    """What the submodules of these names read, by name, as a copy of the module is called."""
    module = copy.deepcopy(module)
    read: dict[str, Tensor] = {}

    def reader(name: str) -> Callable[..., None]:
        return lambda layer, inputs: read.update({name: inputs[0]})

    for name in names:
        module.get_submodule(name).register_forward_pre_hook(reader(name))
    with torch.no_grad():
        call(module)
    return read


def from_module(
    module: nn.Module,
    *,
    name: str | None = None,
    init: Initialiser = glorot_normal,
    prunable: Sequence[str] = (),
    prune_only: Sequence[str] = (),
    keep: Sequence[str] = (),
    tokens: bool = False,
    parts: Sequence[Part] = (),
) -> Model:
    """Make a `Model` of any `nn.Module`.

    The module is copied and never changed. Pruned are the weights of linear, convolution, embedding and attention
    layers; `prunable` adds parameters by name pattern (``"*.gate"``), `prune_only` says which instead, and `keep` which
    not. A weight that several layers share is one parameter with one mask. Parameters that don't require a gradient
    are buffers: they stay as they are. tokens: inputs are whole numbers. parts: what the module takes, where that is
    several inputs (`Dataset.parts`).

    Raises UserError where a pattern fits nothing, no parameter is prunable, or the module has state that is no
    parameter or buffer.
    """
    check_pure(module)
    module = _freezing(copy.deepcopy(module)).requires_grad_(False).cpu()
    if parts:
        module.register_forward_pre_hook(Unpacking(tuple(parts)), with_kwargs=True)  # type: ignore[arg-type]
    params = {key: value.detach().clone() for key, value in module.named_parameters()}
    buffers = {key: value.detach().clone() for key, value in module.named_buffers()}
    names = usual(module, params)
    more = set().union(*(fitting("prunable", pattern, list(params)) for pattern in prunable))
    names = tuple(key for key in params if key in {*names, *more})
    if not names and not prune_only:
        raise UserError(f"{type(module).__name__} has no linear, convolution, embedding or attention weight to prune")

    def initialise(seed: int) -> tuple[Params, Buffers]:
        drawn = init(module, {key: value.clone() for key, value in params.items()}, seed)
        return drawn, {key: value.clone() for key, value in buffers.items()}

    model = Model(
        name=name or type(module).__name__,
        training=copy.deepcopy(module).train(),
        evaluating=copy.deepcopy(module).eval(),
        prunable=names,
        init=initialise,
        tokens=tokens,
        output=names[-1] if names else "",
    )
    return pruning(model, prune_only, keep)


def pruning(model: Model, only: Sequence[str] = (), keep: Sequence[str] = ()) -> Model:
    """The model with other prunable parameters: those that fit a pattern of `only`, but none that fits one of `keep`.

    Raises UserError where a pattern fits nothing, or nothing is left.
    """
    if not only and not keep:
        return model
    params = [name for name, _ in model.training.named_parameters()]
    return model._replace(prunable=chosen(params, model.prunable, only, keep))


def example_of(model: Model, shape: tuple[int, ...], examples: int = 1) -> Tensor:
    """Zeros that the model takes, (examples, *shape): float32, or int64 for tokens."""
    return torch.zeros(examples, *shape, dtype=torch.int64 if model.tokens else torch.float32)


def _freezing(module: nn.Module) -> nn.Module:
    """Parameters that don't require a gradient become buffers, unless none does (a module made for inference)."""
    if not any(leaf.requires_grad for leaf in module.parameters()):
        return module
    for part in module.modules():
        for name, leaf in list(part._parameters.items()):
            if leaf is not None and not leaf.requires_grad:
                del part._parameters[name]
                part.register_buffer(name, leaf.detach())
    return module


def init(model: Model, seed: int = 0, device: torch.device | str = "cpu") -> TrainState:
    """A dense network at step 0: drawn params, full masks, no optimiser state yet."""
    params, buffers = model.init(seed)
    params = {key: value.to(device) for key, value in params.items()}
    buffers = {key: value.to(device) for key, value in buffers.items()}
    masks = full_masks(params, model.prunable)
    return TrainState(params, buffers, masks, (), torch.zeros((), dtype=torch.int64, device=device))
