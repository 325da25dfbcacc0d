"""Network outputs: a tensor, or tensors in tuples, dictionaries and classes that PyTorch's pytrees know."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils import _pytree

from lthfunc.errors import UserError

#: Values other than tensors that outputs may contain unchanged.
_PLAIN = (int, float, complex, bool, str, bytes, type(None))


class Outputs(NamedTuple):
    """The tensors of an output, and the way back.

    rebuilt: builds such an output from as many tensors. single: whether the output is one tensor and nothing else.
    """

    tensors: list[Tensor]
    rebuilt: Callable[[Sequence[Any]], Any]
    single: bool


def outputs_of(given: Any) -> Outputs:
    """An output taken apart.

    An object that shows no tensors to pytrees, such as a language model's cache, comes back as None.
    """
    leaves, structure = _pytree.tree_flatten(given)
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    rest = [leaf if isinstance(leaf, _PLAIN) else None for leaf in leaves]

    def rebuilt(tensors: Sequence[Any]) -> Any:
        filled: list[Any] = list(rest)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        return _pytree.tree_unflatten(filled, structure)

    return Outputs([leaves[place] for place in places], rebuilt, isinstance(given, Tensor))


def map_outputs(function: Callable[[Tensor], Any], given: Any) -> Any:
    """An output with a function applied to each of its tensors."""
    found = outputs_of(given)
    return found.rebuilt([function(tensor) for tensor in found.tensors])


def plain_containers(given: Any) -> Any:
    """An output as dictionaries, tuples and lists of tensors only, for files that other programs read."""
    if isinstance(given, Mapping):
        parts = {str(name): plain_containers(part) for name, part in given.items()}
        return {name: part for name, part in parts.items() if part is not None}
    if isinstance(given, (tuple, list)):
        found = [part for part in map(plain_containers, given) if part is not None]
        return found if isinstance(given, list) else tuple(found)
    return given if isinstance(given, Tensor) else None


def prediction(given: Any) -> Tensor:
    """The tensor of an output that is compared with the targets.

    It is the output itself; its ``logits``, or ``out``, as torchvision calls those of pixels; the first tensor of a
    tuple or list; or the only tensor of anything else.
    Raises UserError where there is none, or where there are several and nothing tells which.
    """
    if isinstance(given, Tensor):
        return given
    for name in ("logits", "out"):
        if isinstance(found := _entry(given, name), Tensor):
            return found
    if isinstance(given, (tuple, list)) and given and not hasattr(given, "_fields"):
        return prediction(given[0])
    tensors = [tensor for tensor in outputs_of(given).tensors if tensor.ndim]
    if len(tensors) == 1:
        return tensors[0]
    names = list(given) if isinstance(given, Mapping) else getattr(given, "_fields", ())
    what = f"a {type(given).__name__}" + (f" of {', '.join(map(str, names))}" if names else "")
    raise UserError(
        f"the network returns {what}, without an entry called logits; pass a loss and a metric that accept this"
    )


def own_loss(given: Any) -> Tensor | None:
    """The loss that a network computed itself, if it returns one and no logits."""
    if isinstance(given, Tensor):
        return None
    loss, logits = _entry(given, "loss"), _entry(given, "logits")
    return loss if isinstance(loss, Tensor) and loss.ndim == 0 and not isinstance(logits, Tensor) else None


def part_of(given: Any, name: str | int) -> Any:
    """A part of an output by its name or number; None where there is none."""
    if isinstance(name, str):
        return _entry(given, name)
    return given[name] if isinstance(given, (tuple, list)) and -len(given) <= name < len(given) else None


def _entry(given: Any, name: str) -> Any:
    return given.get(name) if isinstance(given, Mapping) else getattr(given, name, None)
