"""Parameters and FLOPs of networks, counted on PyTorch's meta device without allocating memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from lthfunc.catalog.networks import NETWORKS, canonical
from lthfunc.errors import UserError
from lthfunc.models.factory import check_fit, made
from lthfunc.tracebacks import first_line
from lthfunc.trees.flops import flops_of
from lthfunc.trees.prunable import default_prunable

#: Input shape and classes for which networks of text are counted.
_TEXT = ((64,), 65)


class Counted(NamedTuple):
    """parameters, prunable: numbers of weights. flops: per example. reason: why inputs don't fit, else None."""

    name: str
    input: tuple[int, ...]
    classes: int
    parameters: int
    prunable: int
    flops: int
    reason: str | None = None


def counted(name: str, shape: tuple[int, ...], classes: int, options: dict[str, str]) -> Counted:
    """Count a network. Raises UserError for an unknown name."""
    name = canonical(name)
    text = name in NETWORKS and NETWORKS[name].inputs == "text"
    if text:
        shape, classes = _TEXT
    try:
        check_fit(name, shape, "text" if text else "numbers")
    except UserError as error:
        return Counted(name, shape, classes, 0, 0, 0, str(error))
    with torch.device("meta"):
        module: Any = made(name, shape, classes, options).eval()
        params = dict(module.named_parameters())
        names = default_prunable(module, params)
        try:
            flops = flops_of(module, shape, tokens=text)
        except Exception as error:  # a user's module that cannot take these inputs
            raise UserError(f"--input: {name!r} cannot take inputs of shape {shape}: {first_line(error)}") from error
    total = sum(leaf.numel() for leaf in params.values())
    return Counted(name, shape, classes, total, sum(params[key].numel() for key in names), flops)
