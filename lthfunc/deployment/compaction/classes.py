"""Classes of labels: numbers that stand for units, united where units can only be removed together."""

from __future__ import annotations

import torch
from torch import Tensor

#: Of what is no unit, such as a number or a mean over units; and of units that cannot be removed.
NEUTRAL, FIXED = 0, 1


class Classes:
    """A union-find structure; the smallest label of a class stands for it, so that FIXED stays itself."""

    def __init__(self) -> None:
        self._parents = [NEUTRAL, FIXED]

    def fresh(self, count: int) -> Tensor:
        """int64 (count,): new labels, each a class of its own."""
        first = len(self._parents)
        self._parents.extend(range(first, first + count))
        return torch.arange(first, first + count)

    def unite(self, left: Tensor, right: Tensor) -> None:
        """Unite the classes of two tensors of labels, element by element; NEUTRAL joins none. They broadcast."""
        one, other = (each.reshape(-1) for each in torch.broadcast_tensors(left, right))
        there = (one != NEUTRAL) & (other != NEUTRAL) & (one != other)
        size = len(self._parents)
        for pair in torch.unique(one[there] * size + other[there]).tolist():
            self._unite(*divmod(pair, size))

    def fix(self, labels: Tensor) -> None:
        """Unite with what cannot be removed."""
        self.unite(labels, torch.tensor(FIXED))

    def roots(self, labels: Tensor) -> Tensor:
        """The labels that stand for the classes of these labels."""
        found, places = torch.unique(labels, return_inverse=True)
        return torch.tensor([self._root(each) for each in found.tolist()], dtype=torch.int64)[places]

    def differ(self, labels: Tensor, axis: int) -> bool:
        """Whether there is more than one class along an axis."""
        return labels.shape[axis] > 1 and differ(self.roots(labels), axis)

    def _root(self, label: int) -> int:
        parents = self._parents
        while parents[label] != label:
            parents[label] = label = parents[parents[label]]
        return label

    def _unite(self, left: int, right: int) -> None:
        one, other = sorted((self._root(left), self._root(right)))
        self._parents[other] = one


def differ(values: Tensor, axis: int) -> bool:
    """Whether values differ along an axis."""
    return values.shape[axis] > 1 and bool((values != values.narrow(axis, 0, 1)).any())
