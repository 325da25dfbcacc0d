"""What an augmentation is: random changes of a batch as a function of the batch and a key."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from lthfunc.tracebacks import is_library_function

#: Random changes of a training batch. Of inputs alone, (inputs, key) -> inputs of the same shape; or, if the second
#: parameter is called `targets`, of both: (inputs, targets, key) -> (inputs, targets). On several ranks one more
#: argument is the number of the first input in the whole batch.
Augment = Callable[..., Any]


#: An attribute of an augmentation that consists of several.
PARTS = "parts"


def is_library_augment(augment: Augment) -> bool:
    """Whether an augmentation, with all that it consists of, is this library's."""
    return all(map(is_library_function, getattr(augment, PARTS, (augment,))))


def changes_targets(augment: Augment | None) -> bool:
    """Whether an augmentation takes and returns targets, too."""
    if augment is None:
        return False
    try:
        names = list(inspect.signature(augment).parameters)
    except (TypeError, ValueError):  # a function of C++ has no signature
        return False
    return names[1:2] == ["targets"]
