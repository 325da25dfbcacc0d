"""The inputs that a convolution multiplies by its weight, as rows: one for each position of its outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

#: Numbers in a chunk of rows.
_CHUNK = 1 << 24


def unfolded(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int] | str,
    dilation: Sequence[int],
    groups: int,
) -> Iterator[Tensor]:
    """The rows of a convolution with zero padding: (groups, rows, channels of a group · kernel), in chunks of examples.

    A row's product with a group's filters, flattened, is an output. x: (n, channels, *sides), or without n.
    """
    x = x if x.ndim == len(kernel) + 2 else x[None]
    reach = [step * (side - 1) + 1 for side, step in zip(kernel, dilation, strict=True)]
    if padding == "same":
        borders = [((size - 1) // 2, size // 2) for size in reach]
    elif padding == "valid":
        borders = [(0, 0)] * len(reach)
    else:
        borders = [(int(each), int(each)) for each in padding]
    x = F.pad(x, [side for border in reversed(borders) for side in border])
    for dim, (size, step) in enumerate(zip(reach, stride, strict=True), 2):
        x = x.unfold(dim, size, step)
    whole: list[slice] = [slice(None)] * (2 + len(reach))
    x = x[tuple(whole + [slice(None, None, step) for step in dilation])]
    channels, outs = x.shape[1], x.shape[2 : 2 + len(reach)]
    features = channels // groups * torch.Size(kernel).numel()
    for part in x.split(max(1, _CHUNK // max(1, groups * features * outs.numel()))):
        # (n, groups, channels, *outs, *kernel) -> (groups, n, *outs, channels, *kernel)
        sides = range(3, 3 + len(outs))
        rows = part.unflatten(1, (groups, -1)).permute(1, 0, *sides, 2, *(side + len(outs) for side in sides))
        yield rows.reshape(groups, -1, features)
