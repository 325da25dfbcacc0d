"""Checksums of trees."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from lthfunc.printable import dtype_and_shape
from lthfunc.trees.ops import leaves


def digest_of(tree: Any) -> str:
    """The SHA-256 of a tree's tensors: their dtypes, shapes and bits, in their order."""
    found = hashlib.sha256()
    for leaf in leaves(tree):
        if isinstance(leaf, Tensor):
            found.update(dtype_and_shape(leaf).encode())
            found.update(leaf.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
