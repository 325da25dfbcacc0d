"""How layers walk over places: sides of an image, padding and strides, and the tiles of flattened values."""

from __future__ import annotations

import torch
from torch import Tensor

from lthfunc.sparse.tile_buffers import Place


class Side:
    """The numbers of a convolution along one side."""

    def __init__(self, size: int, kernel: int, stride: int, padding: int, dilation: int) -> None:
        self.size, self.kernel, self.stride, self.padding, self.dilation = size, kernel, stride, padding, dilation
        self.out = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1

    @property
    def reach(self) -> int:
        """Rows beyond the output's borders that the gradient of the input reads."""
        reach = 0
        for first in range(min(self.stride, self.size)):
            places = -(-(self.size - first) // self.stride)
            for k in range(self.kernel):
                step, rest = divmod(first + self.padding - k * self.dilation, self.stride)
                if rest == 0:
                    reach = max(reach, -step, step + places - self.out)
        return reach


class Walk:
    """Places of an image that a product reads or writes: every `stride`-th from -padding on, so many down and right."""

    def __init__(
        self, place: Place, padding: tuple[int, int], stride: tuple[int, int], size: tuple[int, ...] | None
    ) -> None:
        self.place, self.padding, self.stride = place, padding, stride
        self.ny, self.nx = size or (1, 1)

    def columns(self, prefix: str) -> dict[str, int]:
        """Of an instruction."""
        place = self.place
        return {
            prefix: self.shifted(place.first),
            f"{prefix}_tile": place.tile,
            f"{prefix}_y": self.stride[0] * place.row,
            f"{prefix}_x": self.stride[1],
        }

    def shifted(self, first: int) -> int:
        """The first place, in a memory that begins there."""
        return first - self.padding[0] * self.place.row - self.padding[1]

    def places(self) -> Tensor:
        """Vectors from the first place to each, row after row."""
        down = torch.arange(self.ny) * self.stride[0] * self.place.row
        return (down[:, None] + torch.arange(self.nx) * self.stride[1]).flatten()

    def rows(self) -> Tensor:
        """Vectors from the first place to each channel's."""
        return torch.arange(self.place.channels) * self.place.channel


class FlatWalk(Walk):
    """The places of a flattened value are its tiles."""

    def columns(self, prefix: str) -> dict[str, int]:
        """Of an instruction."""
        return super().columns(prefix) | {f"{prefix}_x": self.place.tile}

    def rows(self) -> Tensor:
        """Vectors from the first place to each feature's."""
        return self.place.addresses()


def plain(place: Place) -> Walk:
    """All of an image."""
    return Walk(place, (0, 0), (1, 1), (place.height, place.width))


def flat(place: Place) -> Walk:
    """A flattened value."""
    return FlatWalk(place, (0, 0), (1, 1), None)


def moved(walk: Walk, place: Place) -> Walk:
    """The same walk in another place of the same layout."""
    return type(walk)(place, walk.padding, walk.stride, (walk.ny, walk.nx))
