"""Where parameters start: functions (module, its params, seed) -> params."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from lthfunc.trees.prunable import layers_of
from lthfunc.trees.rng import generator
from lthfunc.trees.types import Params

#: Draws the parameters of a module anew: (module, its current params, seed) -> params.
Initialiser = Callable[[nn.Module, Params, int], Params]


def glorot_normal(module: nn.Module, params: Params, seed: int) -> Params:
    """Gaussian Glorot for the weights of the layers that are pruned, zero for their biases.

    Weights are N(0, 2 / (fan_in + fan_out)) (Glorot & Bengio 2010, eq. 16; the initialisation of Frankle &
    Carbin 2019, fig. 2). Other parameters (normalisation scales, say) keep the values the module was built
    with. Each leaf has its own stream, so a layer's draw does not depend on the layers before it.
    """
    drawn = dict(params)
    for layer, submodule, weights in layers_of(module):
        prefix = f"{layer}." if layer else ""
        for weight in weights:
            if is_parametrized(submodule, weight):
                drawn |= _parametrised(f"{prefix}parametrizations.{weight}", params, seed)
            elif f"{prefix}{weight}" in params:  # a tied weight is listed once, under its first name
                drawn[f"{prefix}{weight}"] = _glorot(f"{prefix}{weight}", params[f"{prefix}{weight}"], seed)
        for bias in ("bias", "in_proj_bias"):
            if f"{prefix}{bias}" in params:
                drawn[f"{prefix}{bias}"] = torch.zeros_like(params[f"{prefix}{bias}"])
    return drawn


def as_built(module: nn.Module, params: Params, seed: int) -> Params:
    """The values the module was built with, whatever the seed (a pretrained network, say)."""
    return params


def _parametrised(prefix: str, params: Params, seed: int) -> Params:
    """A weight computed from one tensor, or, as weight norm does, from magnitudes and a direction."""
    if (whole := f"{prefix}.original") in params:
        return {whole: _glorot(whole, params[whole], seed)}
    magnitude, direction = f"{prefix}.original0", f"{prefix}.original1"
    if direction not in params or magnitude not in params:
        return {}
    drawn = _glorot(direction, params[direction], seed)
    kept = [axis for axis, size in enumerate(params[magnitude].shape) if size == 1]
    return {magnitude: torch.linalg.vector_norm(drawn, dim=kept, keepdim=True), direction: drawn}


def _glorot(name: str, like: Tensor, seed: int) -> Tensor:
    empty = torch.empty(like.shape, dtype=like.dtype)
    return nn.init.xavier_normal_(empty, generator=generator(seed, "init", name))
