"""A network as pure functions over trees, made from any `nn.Module`."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lthfunc.errors import UserError
from lthfunc.trees.ops import full_masks
from lthfunc.trees.rng import generator
from lthfunc.trees.types import Buffers, Params, TrainState

#: Draws the parameters of a module anew: (module, its current params, seed) -> params.
Initialiser = Callable[[nn.Module, Params, int], Params]

_CONVOLUTIONS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
_PRUNABLE = (nn.Linear, nn.Embedding, *_CONVOLUTIONS)


class Model(NamedTuple):
    """The structure of a network; it holds no values that training changes.

    training, evaluating: the module in its two modes. prunable: names of the parameters that may be pruned,
    in module order (the last one is the output layer). init: seed -> (params, buffers).
    """

    name: str
    training: nn.Module
    evaluating: nn.Module
    prunable: tuple[str, ...]
    init: Callable[[int], tuple[Params, Buffers]]


def apply_training(model: Model, params: Params, buffers: Buffers, x: Tensor) -> tuple[Any, Buffers]:
    """Outputs, and the buffers after the call (BatchNorm updates its statistics); no argument is changed."""
    # A module in training mode writes into the buffers it is given, so it gets copies of its own.
    buffers = {name: buffer.clone() for name, buffer in buffers.items()}
    return functional_call(model.training, (params, buffers), (x,)), buffers


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


def glorot_normal(module: nn.Module, params: Params, seed: int) -> Params:
    """Gaussian Glorot for linear, convolution and embedding weights, zero for their biases.

    Weights are N(0, 2 / (fan_in + fan_out)) (Glorot & Bengio 2010, eq. 16; the initialisation of Frankle &
    Carbin 2019, fig. 2). Other parameters (normalisation scales, say) keep the values the module was built
    with. Each leaf has its own stream, so a layer's draw does not depend on the layers before it.
    """
    drawn = dict(params)
    for layer, submodule in module.named_modules():
        if not isinstance(submodule, _PRUNABLE):
            continue
        prefix = f"{layer}." if layer else ""
        weight, bias = f"{prefix}weight", f"{prefix}bias"
        if weight in params:  # a tied weight is listed once, under its first name
            empty = torch.empty(params[weight].shape, dtype=params[weight].dtype)
            drawn[weight] = nn.init.xavier_normal_(empty, generator=generator(seed, "init", weight))
        if bias in params:
            drawn[bias] = torch.zeros(params[bias].shape, dtype=params[bias].dtype)
    return drawn


def as_built(module: nn.Module, params: Params, seed: int) -> Params:
    """The values the module was built with, whatever the seed (a pretrained network, say)."""
    return params


def from_module(
    module: nn.Module,
    *,
    name: str | None = None,
    init: Initialiser = glorot_normal,
    prunable: Sequence[str] = (),
) -> Model:
    """Make a `Model` of any `nn.Module` that maps one input tensor to outputs.

    The module is copied and never changed. `prunable` adds parameters by name pattern (``"*.in_proj_weight"``)
    to the default: the weights of linear, convolution and embedding layers.

    Raises UserError where a pattern fits nothing or no parameter is prunable.
    """
    module = copy.deepcopy(module).requires_grad_(False).cpu()
    params = {key: value.detach().clone() for key, value in module.named_parameters()}
    buffers = {key: value.detach().clone() for key, value in module.named_buffers()}
    layers = {f"{key}.weight" if key else "weight" for key, sub in module.named_modules() if isinstance(sub, _PRUNABLE)}
    for pattern in prunable:
        fits = fnmatch.filter(params, pattern)
        if not fits:
            raise UserError(f"prunable: no parameter fits {pattern!r} (parameters: {', '.join(params)})")
        layers.update(fits)
    chosen = tuple(key for key in params if key in layers)
    if not chosen:
        raise UserError(f"{type(module).__name__} has no linear, convolution or embedding weight to prune")

    def initialise(seed: int) -> tuple[Params, Buffers]:
        drawn = init(module, {key: value.clone() for key, value in params.items()}, seed)
        return drawn, {key: value.clone() for key, value in buffers.items()}

    return Model(
        name=name or type(module).__name__,
        training=copy.deepcopy(module).train(),
        evaluating=copy.deepcopy(module).eval(),
        prunable=chosen,
        init=initialise,
    )


def init(model: Model, seed: int = 0, device: torch.device | str = "cpu") -> TrainState:
    """A dense network at step 0: drawn params, full masks, no optimiser state yet."""
    params, buffers = model.init(seed)
    params = {key: value.to(device) for key, value in params.items()}
    buffers = {key: value.to(device) for key, value in buffers.items()}
    masks = full_masks(params, model.prunable)
    return TrainState(params, buffers, masks, (), torch.zeros((), dtype=torch.int64, device=device))
