"""A graph's outputs, structured as the network returns them: a tensor, dictionaries, tuples, classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.fx import Graph, Node

from lthfunc.trees.outputs import Outputs


class BuildOutput:
    """Builds an output from its tensors, where its class is one that a graph cannot express.

    keys: the tensors' names in it, or None for a kind of tuple.
    """

    def __init__(self, outputs: Outputs, keys: Sequence[str] | None) -> None:
        self.outputs, self.keys = outputs, keys and tuple(keys)
        self.__name__ = self.__qualname__ = "nested"

    def __call__(self, *tensors: Any) -> Any:
        """Build the output."""
        return self.outputs.rebuilt(tensors)


def set_outputs(graph: Graph, outputs: Outputs, tensors: Sequence[Node]) -> None:
    """Add the output node."""
    whole = outputs.rebuilt(tensors)
    if not _is_plain(whole):
        whole = graph.call_function(BuildOutput(outputs, _keys(whole, len(tensors))), tuple(tensors))
    graph.output(whole)


def _is_plain(value: Any) -> bool:
    if type(value) is dict:
        return all(isinstance(key, str) and _is_plain(part) for key, part in value.items())
    if type(value) in (tuple, list):
        return all(map(_is_plain, value))
    return isinstance(value, (Node, int, float, complex, bool, str, type(None)))


def _keys(whole: Any, count: int) -> list[str] | None:
    if isinstance(whole, tuple):
        return None
    if isinstance(whole, Mapping):
        names = [str(key) for key, value in whole.items() if isinstance(value, Node)]
        if len(names) == count:
            return names
    return [f"output{place}" for place in range(count)]
