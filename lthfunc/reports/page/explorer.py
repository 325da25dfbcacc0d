"""Data of the page's explorer of masks and weights: one seed's masks, compressed."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lthfunc.reports.page.mask_history import Patterns, pixel_shares

#: Weights of a layer, and of a network, up to which single weights are shown; larger ones are shown in blocks.
_MOST_OF_LAYER, _MOST = 300_000, 2_000_000
_BLOCKS = 64


def explorer_of(patterns: Patterns, pixels: tuple[str, Tensor] | None) -> dict[str, Any]:
    """Plain values for the page's script.

    pixels: of `pixels_of`, where the first layer is a linear one over images.
    """
    exact = sum(leaf.numel() for leaf in patterns.pruned.values()) <= _MOST
    rounds = len(patterns.rounds)
    layers = [
        _layer(name, leaf, rounds, exact and leaf.numel() <= _MOST_OF_LAYER)
        | ({"histogram": patterns.histograms[name]._asdict()} if name in patterns.histograms else {})
        for name, leaf in patterns.pruned.items()
    ]
    return {
        "seed": patterns.seed,
        "rounds": patterns.rounds,
        "densities": patterns.densities,
        "layers": layers,
        "pixels": None if pixels is None else {
            "layer": pixels[0], "height": pixels[1].shape[1], "width": pixels[1].shape[2],
            "most": pixels[1].amax(dim=(1, 2)).tolist(),
            "shares": _packed(_bytes_of(pixels[1] / pixels[1].amax(dim=(1, 2), keepdim=True).clamp(min=1e-9))),
        },
    }  # fmt: skip


def pixels_of(patterns: Patterns, shape: Sequence[int] | None) -> tuple[str, Tensor] | None:
    """(the first layer's name, the share of each pixel's weights that survive, (rounds, height, width))."""
    if shape is None or len(shape) != 3 or not patterns.pruned:
        return None
    name, leaf = next(iter(patterns.pruned.items()))
    channels, height, width = shape
    if leaf.ndim != 2 or leaf.shape[1] != channels * height * width:
        return None
    return name, pixel_shares(leaf, shape, len(patterns.rounds))


def matrix_of(leaf: Tensor) -> Tensor:
    """A leaf as a matrix to show: a row per output; a convolution's kernels as tiles."""
    if leaf.ndim == 4:
        outputs, inputs, high, wide = leaf.shape
        return leaf.permute(0, 2, 1, 3).reshape(outputs * high, inputs * wide)
    return leaf.reshape(leaf.shape[0], -1) if leaf.ndim > 1 else leaf.reshape(1, -1)


def _layer(name: str, leaf: Tensor, rounds: int, exact: bool) -> dict[str, Any]:
    matrix = matrix_of(leaf)
    about = {
        "name": name.removesuffix(".weight"),
        "shape": "×".join(map(str, leaf.shape)),
        "total": leaf.numel(),
        "kept": [int((leaf > place).sum()) for place in range(rounds)],
    }
    if exact:
        height, width = matrix.shape
        return about | {"height": height, "width": width, "pruned": _packed(matrix)}
    blocks = torch.stack([_blocks(matrix > place) for place in range(rounds)])
    return about | {"height": blocks.shape[1], "width": blocks.shape[2], "shares": _packed(_bytes_of(blocks))}


def _blocks(mask: Tensor) -> Tensor:
    height, width = (min(_BLOCKS, extent) for extent in mask.shape)
    return F.adaptive_avg_pool2d(mask[None, None].float(), (height, width))[0, 0]


def _bytes_of(shares: Tensor) -> Tensor:
    return (255 * shares).round().to(torch.uint8)


def _packed(values: Tensor) -> str:
    return base64.b64encode(zlib.compress(values.contiguous().numpy().tobytes(), 9)).decode()
