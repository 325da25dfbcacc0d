"""A network block by block: batches of inputs go through it, and only what one block returns is held."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lthfunc.argument_hints import described
from lthfunc.errors import UserError, invalid
from lthfunc.trees.model import Model
from lthfunc.trees.module_calls import functional_call
from lthfunc.trees.module_errors import taking_inputs
from lthfunc.trees.ops import clone, leaves, tree_map
from lthfunc.trees.types import Buffers, Params

#: (the forward of a block, its arguments, its keyword arguments) -> what it returns.
Instead = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


def block_names(model: Model, patterns: Sequence[str] = ()) -> tuple[str, ...]:
    """The submodules that patterns name; by default those of one class in lists, that which has most weights.

    Where there is no such class, each layer with prunable weights is a block. Raises UserError for a pattern that
    matches nothing, for a block without prunable weights, and for one within another.
    """
    parts = {name: part for name, part in model.evaluating.named_modules() if name}
    sizes = {name: leaf.numel() for name, leaf in model.evaluating.named_parameters() if name in model.prunable}
    weights = {name: sum(size for leaf, size in sizes.items() if leaf.startswith(f"{name}.")) for name in parts}
    if patterns:
        found: set[str] = set()
        for pattern in patterns:
            fits = fnmatch.filter(parts, pattern)
            if not fits:
                raise invalid("blocks", pattern, "a pattern that matches a module, as model.layers.*")
            found.update(fits)
        names = [name for name in parts if name in found]
    else:
        owners = {leaf.rpartition(".")[0] for leaf in model.prunable} & {*parts}
        names = _listed(parts, weights, owners) or [name for name in parts if name in owners]
    for name in names:
        outer = next((other for other in names if name.startswith(f"{other}.")), None)
        if outer is not None:
            raise UserError(f"blocks: {name} is within {outer}; name one of them")
        if [part is parts[name] for _, part in model.evaluating.named_modules(remove_duplicate=False)].count(True) > 1:
            raise UserError(f"blocks: {name} is used in several places")
        if not weights[name]:
            raise UserError(f"blocks: {name} has no prunable weight")
    return tuple(names)


def _listed(parts: Mapping[str, nn.Module], weights: Mapping[str, int], owners: set[str]) -> list[str]:
    """The modules in lists that have layers within, of the class that has most weights."""
    classes: dict[type[nn.Module], list[str]] = {}
    for name, part in parts.items():
        home = parts.get(name.rpartition(".")[0])
        listed = isinstance(home, (nn.Sequential, nn.ModuleList)) and not isinstance(part, nn.ModuleList)
        if listed and weights[name] and name not in owners:
            classes.setdefault(type(part), []).append(name)
    several = [names for names in classes.values() if len(names) > 1]
    return max(several, key=lambda names: sum(weights[name] for name in names), default=[])


class BlockWalk:
    """Batches of inputs on their way through the blocks of a network, in evaluation mode.

    Whatever lies before and between blocks is computed again for each of them, from the inputs and from what the block
    before it returned. So that is all that is held, for each batch, beside the shapes of what earlier blocks returned.
    order: the blocks as the network calls them; at: the number of the next one.

    params, buffers: belong to the walk, for a network that writes into them. Raises UserError for a block that is not
    called once, and for one that reads more than what the block before it returned.
    """

    def __init__(
        self, model: Model, params: Params, buffers: Buffers, inputs: Sequence[Tensor], names: Sequence[str]
    ) -> None:
        self._model, self._buffers, self._inputs = model, buffers, inputs
        self._returned: list[Any] = [None] * len(inputs)  # by the block before the next one
        self._earlier: list[list[Any]] = [[] for _ in inputs]  # shapes of what those before it returned
        self.at = 0
        self.order = self._called(params, names)

    def read(self, params: Params, reading: AbstractContextManager[Any]) -> None:
        """Call the next block on all batches, within a context."""
        for number in range(len(self._inputs)):
            self._run(number, params, reading)

    def advance(self, params: Params, reading: AbstractContextManager[Any] | None = None) -> None:
        """Call the next block on all batches, within a context if there is one, and go on to the one after it."""
        for number, before in enumerate(self._returned):
            self._returned[number] = self._run(number, params, reading or nullcontext())
            if self.at:
                self._earlier[number].append(tree_map(lambda leaf: leaf.to("meta"), before))
        self.at += 1

    def _run(self, number: int, params: Params, reading: AbstractContextManager[Any]) -> Any:
        """What the next block returns for a batch."""
        name, x = self.order[self.at], self._inputs[number]

        def last(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            self._check_reads((args, kwargs), self._returned[number])
            with reading:
                made = forward(*args, **kwargs)
            for leaf in leaves(made):
                if not isinstance(leaf, Tensor):
                    raise UserError(f"blocks: {name} returns {described(leaf)} (expected tensors)")
            raise _ReturnedError(made)

        instead: list[Instead] = [_replaying(_nan_like, x.device, shapes) for shapes in self._earlier[number]]
        if self.at:
            instead.append(_replaying(clone, self._returned[number]))
        try:
            self._call(x, params, dict(zip(self.order, [*instead, last], strict=False)))
        except _ReturnedError as returned:
            return returned.made
        raise UserError(f"blocks: {name} is not called for each batch of inputs")

    def _call(self, x: Tensor, params: Params, instead: Mapping[str, Instead]) -> None:
        module = _with_forwards(self._model.evaluating, instead)
        with taking_inputs(self._model.name, x.shape[1:], module), torch.no_grad():
            functional_call(module, {**params, **self._buffers}, (x.clone(),))

    def _called(self, params: Params, names: Sequence[str]) -> tuple[str, ...]:
        """The blocks in the order of their calls."""
        calls: list[str] = []

        def noted(name: str, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            calls.append(name)
            return forward(*args, **kwargs)

        self._call(self._inputs[0], params, {name: partial(noted, name) for name in names})
        for name in names:
            if calls.count(name) != 1:
                raise UserError(f"blocks: {name} is called {calls.count(name)} times (expected once)")
        return tuple(calls)

    def _check_reads(self, given: Any, before: Any) -> None:
        if not _has_nan(given):
            return
        name, last = self.order[self.at], self.order[max(0, self.at - 1)]
        if _has_nan(before) or not self.at:
            raise UserError(f"inputs: {name} gets numbers that are none (NaN)")
        raise UserError(f"blocks: {name} reads more than what {last} returns; name larger blocks, which hold both")


class _ReturnedError(BaseException):
    """Ends a call of a network behind the block that is asked for; no module takes it for an error of its own."""

    def __init__(self, made: Any) -> None:
        super().__init__()
        self.made = made


def _replaying(make: Callable[..., Any], *given: Any) -> Instead:
    """A forward that returns what a function makes."""
    return lambda forward, args, kwargs: make(*given)


def _with_forwards(module: nn.Module, instead: Mapping[str, Instead]) -> nn.Module:
    """The module, of whose submodules some do something else; it shares all parameters and other submodules."""
    own = instead.get("")
    new: nn.Module = object.__new__(type(module))
    new.__dict__.update(module.__dict__)
    if own is not None:
        forward = module.forward  # not the new one's: that circle would keep what it closes over
        new.__dict__["forward"] = lambda *args, **kwargs: own(forward, args, kwargs)
        return new
    within: dict[str, dict[str, Instead]] = {}
    for name, each in instead.items():
        child, _, rest = name.partition(".")
        within.setdefault(child, {})[rest] = each
    parts = {child: _with_forwards(module.get_submodule(child), inner) for child, inner in within.items()}
    new.__dict__["_modules"] = {**module._modules, **parts}
    return new


def _nan_like(device: torch.device, shapes: Any) -> Any:
    """What stands for outputs of earlier blocks, so that it shows who reads them."""
    return tree_map(
        lambda leaf: torch.full_like(leaf, math.nan if leaf.is_floating_point() else 0, device=device), shapes
    )


def _has_nan(tree: Any) -> bool:
    return any(isinstance(leaf, Tensor) and bool(leaf.isnan().any()) for leaf in leaves(tree))
