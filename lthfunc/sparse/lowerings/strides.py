"""Which positions layers read and write: sides of an image, padding and strides, and the tiles of flattened values."""

from __future__ import annotations

import torch
from torch import Tensor

from lthfunc.sparse.kernels.instructions import CONSTANTS
from lthfunc.sparse.tile_buffers import VECTOR_BYTES, TileBuffer

_STRETCH = CONSTANTS["STRETCH"]


class ConvolutionAxis:
    """The numbers of a convolution along one side."""

    def __init__(self, size: int, kernel: int, stride: int, padding: int, dilation: int) -> None:
        self.size, self.kernel, self.stride, self.padding, self.dilation = size, kernel, stride, padding, dilation
        self.out = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1

    @property
    def reach(self) -> int:
        """Rows beyond the output's borders that the gradient of the input reads."""
        reach = 0
        for first in range(min(self.stride, self.size)):
            positions = -(-(self.size - first) // self.stride)
            for k in range(self.kernel):
                step, rest = divmod(first + self.padding - k * self.dilation, self.stride)
                if rest == 0:
                    reach = max(reach, -step, step + positions - self.out)
        return reach


class StridedRegion:
    """Positions of an image that a product reads or writes: every `stride`-th from -padding on, ny × nx of them."""

    def __init__(
        self, buffer: TileBuffer, padding: tuple[int, int], stride: tuple[int, int], size: tuple[int, ...] | None
    ) -> None:
        self.buffer, self.padding, self.stride = buffer, padding, stride
        self.ny, self.nx = size or (1, 1)

    @property
    def half(self) -> bool:
        """Whether its numbers have 16 bits."""
        return self.buffer.half

    def columns(self, prefix: str) -> dict[str, int]:
        """Of an instruction."""
        buffer = self.buffer
        return {
            prefix: self.shifted(buffer.first),
            f"{prefix}_tile": buffer.tile,
            f"{prefix}_y": self.stride[0] * buffer.row,
            f"{prefix}_x": self.stride[1],
        }

    def shifted(self, first: int) -> int:
        """The first position, in a buffer that begins there."""
        return first - self.padding[0] * self.buffer.row - self.padding[1]

    def positions(self) -> Tensor:
        """Vectors from the first position to each, row after row."""
        down = torch.arange(self.ny) * self.stride[0] * self.buffer.row
        return (down[:, None] + torch.arange(self.nx) * self.stride[1]).flatten()

    def rows(self) -> Tensor:
        """Vectors from the first position to each channel's."""
        return torch.arange(self.buffer.channels) * self.buffer.channel


class FlatRegion(StridedRegion):
    """The positions of a flattened value are its tiles."""

    def columns(self, prefix: str) -> dict[str, int]:
        """Of an instruction."""
        return super().columns(prefix) | {f"{prefix}_x": self.buffer.tile}

    def rows(self) -> Tensor:
        """Vectors from the first position to each feature's."""
        return self.buffer.addresses()


#: Bytes that a list's walk, or two rows of pooled outputs, may read again and again: a little more than a first-level
#: cache. And the fewest places that it pays for.
NEAR_BYTES, _LEAST_PLACES = 40 * 1024, 4


class TokensRegion(StridedRegion):
    """All tokens. features: of those that are read, by which few enough are taken at a time to stay in a near cache."""

    def __init__(self, buffer: TileBuffer, features: int) -> None:
        super().__init__(buffer, (0, 0), (1, 1), (buffer.height, buffer.width))
        self.features = features

    @property
    def pieces(self) -> StridedRegion:
        """The same places, where they are one row, as rows of as many as one walk of a list should take."""
        most = max(_LEAST_PLACES, NEAR_BYTES // (VECTOR_BYTES * max(1, self.features)))
        if self.ny > 1 or self.nx <= min(most, _STRETCH):
            return self
        best = max(each for each in range(1, min(most, _STRETCH) + 1) if self.nx % each == 0)
        return _Pieces(self.buffer, self.nx // best, best) if best >= _LEAST_PLACES else self


class _Pieces(StridedRegion):
    """One row of places in parts of even length."""

    def __init__(self, buffer: TileBuffer, count: int, each: int) -> None:
        super().__init__(buffer, (0, 0), (1, 1), (count, each))

    def columns(self, prefix: str) -> dict[str, int]:
        """Of an instruction."""
        return super().columns(prefix) | {f"{prefix}_y": self.nx}


def plain(buffer: TileBuffer) -> StridedRegion:
    """All of an image."""
    return StridedRegion(buffer, (0, 0), (1, 1), (buffer.height, buffer.width))


def flat(buffer: TileBuffer) -> StridedRegion:
    """A flattened value."""
    return FlatRegion(buffer, (0, 0), (1, 1), None)


def moved(region: StridedRegion, buffer: TileBuffer) -> StridedRegion:
    """The same region of another buffer of the same layout."""
    if isinstance(region, TokensRegion):
        return TokensRegion(buffer, region.features)
    return type(region)(buffer, region.padding, region.stride, (region.ny, region.nx))
