"""Formats of single layers: when each can be used, and the module that computes the layer. Weights are masked."""

from __future__ import annotations

import copy
import importlib.util
import logging
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lthfunc.sparse.functional import Pattern, conv_pattern, from_tiles, linear_pattern, sparse_conv2d, to_tiles
from lthfunc.sparse.kernels.build import why_no_kernels
from lthfunc.sparsify.structures import has_n_of_m


class MaskedLayer(NamedTuple):
    """A linear layer or convolution within a network. mask: bool, of its weight. x: a batch of its inputs there."""

    name: str
    module: nn.Module
    mask: Tensor
    x: Tensor


class Format(NamedTuple):
    """why_not: the reason why a layer cannot take it, or None. make: the layer in this format."""

    why_not: Callable[[MaskedLayer], str | None]
    make: Callable[[MaskedLayer], nn.Module]


def why_not_linear(layer: MaskedLayer) -> str | None:
    """The reason, for formats of matrices."""
    return None if isinstance(layer.module, nn.Linear) and layer.x.ndim == 2 else "takes only linear layers"


def _why_not_csr(layer: MaskedLayer) -> str | None:
    """The reason, for formats of torch.sparse."""
    if layer.x.device.type == "cpu" and layer.x.dtype not in (torch.float32, torch.float64):
        return f"on a CPU takes float32 or float64, not {_name(layer.x.dtype)}"
    return why_not_linear(layer)


class CsrLinear(nn.Module):
    """A linear layer by torch's product of a CSR matrix."""

    def __init__(self, layer: MaskedLayer) -> None:
        super().__init__()
        weight, self.bias = _parts(layer)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch warns once that CSR tensors are in beta
            self.register_buffer("weight", weight.to_sparse_csr(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (n, inputs)."""
        y = torch.matmul(self.weight, x.T).T  # type: ignore[arg-type]
        return y if self.bias is None else y + self.bias


class BlockLinear(nn.Module):
    """A linear layer by torch's product of a BSR matrix: a block with any surviving weight is computed whole."""

    def __init__(self, layer: MaskedLayer) -> None:
        super().__init__()
        weight, self.bias = _parts(layer)
        size = block_size(layer)
        assert size is not None
        self._size = size
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            self.register_buffer("weight", weight.to_sparse_bsr((size, size)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (n, inputs)."""
        if x.is_cuda:  # torch has this product on a GPU (Triton), the transposed one on a CPU
            return F.linear(in_whole_blocks(x, self._size), self.weight, self.bias)[: len(x)]  # type: ignore[arg-type]
        y = torch.matmul(self.weight, x.T.contiguous()).T  # type: ignore[arg-type]
        return y if self.bias is None else y + self.bias


def in_whole_blocks(x: Tensor, size: int) -> Tensor:
    """x (n, inputs) padded with rows of zeros to a multiple of the block: torch's kernel takes only whole blocks."""
    rest = -len(x) % size
    return F.pad(x, (0, 0, 0, rest)) if rest else x


class SemiStructuredLinear(nn.Module):
    """A linear layer with 2 of every 4 weights, on tensor cores that skip the others."""

    def __init__(self, layer: MaskedLayer) -> None:
        super().__init__()
        weight, self.bias = _parts(layer)
        self.register_buffer("weight", torch.sparse.to_sparse_semi_structured(weight), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (n, inputs)."""
        return F.linear(x, self.weight, self.bias)  # type: ignore[arg-type]


class ListedLayer(nn.Module):
    """A linear layer or convolution by this library's kernels, for networks that the sparse engine cannot run whole."""

    def __init__(self, layer: MaskedLayer) -> None:
        super().__init__()
        weight, self.bias = _parts(layer)
        module = layer.module
        if isinstance(module, nn.Conv2d):
            pad = _both(module.padding)
            self.pattern: Pattern = conv_pattern(
                layer.mask, (layer.x.shape[2], layer.x.shape[3]), _both(module.stride), pad
            )
        else:
            self.pattern = linear_pattern(layer.mask)
        self.values = nn.Parameter(weight[layer.mask], requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (n, inputs) or (n, channels, height, width)."""
        y = sparse_conv2d(to_tiles(x), self.values, self.bias, self.pattern)
        return y.permute(0, 4, 1, 2, 3).flatten(0, 1)[: len(x)] if x.ndim == 4 else from_tiles(y, len(x))


def _parts(layer: MaskedLayer) -> tuple[Tensor, nn.Parameter | None]:
    """(the weight, the bias)."""
    module: Any = layer.module
    bias = None if module.bias is None else nn.Parameter(module.bias.detach(), requires_grad=False)
    return module.weight.detach(), bias


def _both(setting: Any) -> tuple[int, int]:
    return (setting[0], setting[1]) if isinstance(setting, tuple) else (setting, setting)


#: Sizes of square blocks to try, largest first, until at most this share of the blocks holds a weight. On a GPU
#: torch's Triton kernel takes no smaller blocks than _LEAST_ON_GPU.
_BLOCKS, _FULL = (64, 32, 16, 8, 4), 0.6
_LEAST_ON_GPU = 16


def block_size(layer: MaskedLayer) -> int | None:
    """The largest block size that divides the weight and leaves enough blocks empty, or None."""
    for size in block_sizes(layer.x.device):
        if all(side % size == 0 for side in layer.mask.shape) and block_density(layer.mask, size) <= _FULL:
            return size
    return None


def block_sizes(device: torch.device) -> tuple[int, ...]:
    """Block sizes that a device has a product for, largest first."""
    return tuple(size for size in _BLOCKS if device.type != "cuda" or size >= _LEAST_ON_GPU)


def block_density(mask: Tensor, size: int) -> float:
    """The share of size × size blocks that hold a weight."""
    tiles = mask.unfold(0, size, size).unfold(1, size, size)
    return float(tiles.flatten(2).any(2).float().mean())


def _why_not_block(layer: MaskedLayer) -> str | None:
    if reason := _why_not_csr(layer):
        return reason
    if layer.x.device.type == "cuda" and layer.x.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"on a GPU takes float16, bfloat16 or float32, not {_name(layer.x.dtype)}"
    if block_size(layer) is None:
        rows, columns = layer.mask.shape
        sizes = ", ".join(map(str, block_sizes(layer.x.device)))
        return f"finds no block size ({sizes}) that divides {rows}×{columns} and leaves {1 - _FULL:.0%} of them empty"
    return None


def _why_not_semi_structured(layer: MaskedLayer) -> str | None:
    if reason := why_not_linear(layer):
        return reason
    if layer.x.device.type != "cuda":
        return "needs a CUDA device"
    if torch.cuda.get_device_capability(layer.x.device) < (8, 0):
        return "needs compute capability 8.0"
    if layer.x.dtype not in (torch.float16, torch.bfloat16):
        return f"takes float16 or bfloat16, not {_name(layer.x.dtype)}"
    rows, columns = layer.mask.shape
    if rows % 32 or columns % 64:
        return f"needs multiples of 32 outputs and 64 inputs, not {rows}×{columns}"
    if not has_n_of_m(layer.mask, 2, 4):
        return "needs a mask with at most 2 of every 4 weights (structure 2:4)"
    return None


def _why_not_int8(layer: MaskedLayer) -> str | None:
    if importlib.util.find_spec("torchao") is None:
        return "needs torchao (pip install 'lthfunc[export]')"
    return why_not_linear(layer)


def _int8(layer: MaskedLayer) -> nn.Module:
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # about torchao's own registrations
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    # quantize_ replaces the linear layers inside a module, so the layer needs a parent.
    holder = nn.Sequential(copy.deepcopy(layer.module))
    quantize_(holder, Int8DynamicActivationInt8WeightConfig())
    return holder[0]


def _why_not_listed(layer: MaskedLayer) -> str | None:
    if layer.x.device.type != "cpu":
        return "runs on the CPU"
    if layer.x.dtype != torch.float32:
        return f"computes in float32, not {_name(layer.x.dtype)}"
    if reason := why_no_kernels():
        return reason
    if isinstance(layer.module, nn.Conv2d):
        plain = layer.module.groups == 1 and _both(layer.module.dilation) == (1, 1)
        return None if plain and not isinstance(layer.module.padding, str) else "takes plain convolutions"
    return why_not_linear(layer)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


LISTED = Format(_why_not_listed, ListedLayer)
CSR = Format(_why_not_csr, CsrLinear)
BLOCK = Format(_why_not_block, BlockLinear)
SEMI_STRUCTURED = Format(_why_not_semi_structured, SemiStructuredLinear)
INT8 = Format(_why_not_int8, _int8)
