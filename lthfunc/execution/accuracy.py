"""How often a program is right."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lthfunc.trees.ops import scaled
from lthfunc.trees.types import Dataset


def accuracy_of(program: nn.Module, data: Dataset, batch: int, device: torch.device | str = "cpu") -> float:
    """Share of the test set whose largest output is the target, in [0, 1], in batches of one size.

    The last batch is filled up with its first example, so that no program is made ready for a size of its own.
    """
    right = 0
    with torch.no_grad():
        for x, y in zip(torch.split(data.test.x, batch), torch.split(data.test.y, batch), strict=True):
            given = scaled(_filled(x, batch).to(device), data.scale)
            outputs: Tensor = program(given)[: len(x)]
            right += int((outputs.argmax(-1).cpu() == y).sum())
    return right / len(data.test.x)


def _filled(x: Tensor, batch: int) -> Tensor:
    return x if len(x) == batch else torch.cat([x, x[:1].expand(batch - len(x), *x.shape[1:])])
