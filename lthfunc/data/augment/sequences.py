"""Several augmentations as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from lthfunc.errors import ArgumentError
from lthfunc.trees.augmenting import PARTS, Augment, changes_targets
from lthfunc.trees.rng import fold_in


def unchanged(inputs: Tensor, key: Tensor, first: int = 0) -> Tensor:
    """The inputs as they are."""
    return inputs


def augmentations(*parts: Callable[..., Any]) -> Augment:
    """Several augmentations as one, which applies them in their order, each with a key of its own.

    parts: functions (inputs, key) -> inputs or (inputs, targets, key) -> (inputs, targets); the result is one of the
    second kind if a part is. Raises ArgumentError if there is none.

    >>> both = lf.augmentations(lf.mirror, lf.cutout(2))
    >>> both(torch.rand(2, 3, 8, 8), torch.tensor(5)).shape
    torch.Size([2, 3, 8, 8])
    """
    if not parts or not all(map(callable, parts)):
        raise ArgumentError("augmentations: needs functions such as lf.mirror")
    if len(parts) == 1:
        return parts[0]

    def of_both(inputs: Tensor, targets: Tensor, key: Tensor, *place: int) -> tuple[Tensor, Tensor]:
        for number, part in enumerate(parts):
            own = fold_in(key, number)
            if changes_targets(part):
                inputs, targets = part(inputs, targets, own, *place)
            else:
                inputs = part(inputs, own, *place)
        return inputs, targets

    def of_inputs(inputs: Tensor, key: Tensor, *place: int) -> Tensor:
        for number, part in enumerate(parts):
            inputs = part(inputs, fold_in(key, number), *place)
        return inputs

    several = of_both if any(map(changes_targets, parts)) else of_inputs
    setattr(several, PARTS, parts)
    return several
