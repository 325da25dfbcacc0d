"""Ranks that train one network hold the same masks: checked by a number that each computes of its own."""

from __future__ import annotations

import torch

from lthfunc.distributed.collectives import Collectives
from lthfunc.errors import UserError
from lthfunc.trees.digests import short_digest
from lthfunc.trees.types import Masks


def check_equal_masks(masks: Masks, ranks: Collectives, where: str) -> None:
    """Raise UserError on all ranks where the masks of one differ from those of rank 0. All of them call this together.

    where: what the error begins with.
    """
    if ranks.world_size == 1:
        return
    device = next(iter(masks.values())).device
    found = ranks.all_gather(torch.tensor([short_digest(masks)], device=device)).tolist()
    for rank, other in enumerate(found):
        if other != found[0]:
            raise UserError(f"{where}: the masks of rank {rank} differ from those of rank 0, which must see the same")
