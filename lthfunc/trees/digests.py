"""Checksums of trees."""

from __future__ import annotations

import hashlib
from typing import Any

from torch import Tensor

from lthfunc.printable import dtype_and_shape
from lthfunc.trees.ops import leaves, raw_bytes


def digest_of(tree: Any) -> str:
    """The SHA-256 of a tree's tensors: their dtypes, shapes and bits, in their order."""
    found = hashlib.sha256()
    for leaf in leaves(tree):
        if isinstance(leaf, Tensor):
            found.update(dtype_and_shape(leaf).encode())
            found.update(raw_bytes(leaf).numpy().data)
    return found.hexdigest()


def short_digest(tree: Any) -> int:
    """The first 60 bits of `digest_of`, which a tensor of int64 can hold."""
    return int(digest_of(tree)[:15], 16)
