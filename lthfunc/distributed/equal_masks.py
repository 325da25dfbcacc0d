"""Ranks that train one network hold the same masks: checked by a number that each computes of its own."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from lthfunc.distributed.collectives import Collectives
from lthfunc.errors import UserError
from lthfunc.trees.types import Masks


def check_equal_masks(masks: Masks, ranks: Collectives, where: str) -> None:
    """Raise UserError on all ranks where the masks of one differ from those of rank 0. All of them call this together.

    where: what the error begins with.
    """
    if ranks.world_size == 1:
        return
    device = next(iter(masks.values())).device
    found = ranks.all_gather(torch.tensor([digest(masks)], device=device)).tolist()
    for rank, other in enumerate(found):
        if other != found[0]:
            raise UserError(f"{where}: the masks of rank {rank} differ from those of rank 0, which must see the same")


def digest(masks: Masks) -> int:
    """A number that differs where the masks of a network do: 64 bits, with a sign."""
    found = hashlib.blake2b(digest_size=8)
    for mask in masks.values():
        found.update(np.packbits(mask.cpu().numpy()).tobytes())
    return int.from_bytes(found.digest(), "little", signed=True)
