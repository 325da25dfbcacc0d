"""What named layers of a network compute on the way to its outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn

from lthfunc.errors import UserError, unknown
from lthfunc.trees.model import Model

#: Where the layers of the call under way leave what they compute; one in each thread.
_found: ContextVar[dict[str, Any] | None] = ContextVar("features", default=None)


def with_features(model: Model, names: Collection[str], whose: str = "features") -> Model:
    """The model with layers that show what they compute to `capturing`; its own modules stay as they are.

    names: of layers, as `nn.Module.named_modules` has them. whose: what an error calls them. Raises UserError for a
    layer that the model lacks.
    """
    if not names:
        return model
    for name in names:
        if name not in (known := [each for each, _ in model.training.named_modules() if each]):
            raise unknown(whose, name, known)
    return model._replace(training=_showing(model.training, names), evaluating=_showing(model.evaluating, names))


@contextmanager
def capturing(names: Collection[str]) -> Iterator[dict[str, Any]]:
    """A dictionary that a call of a model `with_features` in the block fills: what each layer returned last.

    Raises UserError at the end of the block for a layer that was not called.
    """
    found: dict[str, Any] = {}
    if not names:  # a context variable keeps torch.compile of PyTorch 2.11 out
        yield found
        return
    token = _found.set(found)
    try:
        yield found
    finally:
        _found.reset(token)
    for name in names:
        if name not in found:
            raise UserError(f"features: the layer {name!r} is not called in forward, so it has no output")


def _showing(module: nn.Module, names: Collection[str]) -> nn.Module:
    module = copy.deepcopy(module)
    for name in names:
        module.get_submodule(name).register_forward_hook(_leaving(name))
    return module


def _leaving(name: str) -> Callable[[nn.Module, Any, Any], None]:
    def leave(layer: nn.Module, inputs: Any, output: Any) -> None:
        found = _found.get()
        if found is not None:
            found[name] = output

    return leave
