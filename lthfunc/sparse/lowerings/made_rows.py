"""Rows of what batch normalisation gives, and of the gradient behind it: whoever reads them has them written a few at a
time, or makes them of what they are made of."""

from __future__ import annotations

from dataclasses import dataclass

from lthfunc.sparse.builder import Builder, GradientTarget, Value
from lthfunc.sparse.kernels.instructions import BY_TILES
from lthfunc.sparse.tile_buffers import TileBuffer, no_buffer_of_kind


@dataclass(frozen=True, eq=False)
class NormalisedRows:
    """Rows of a normalised value.

    source: what is normalised. saved: where its constants lie. added: what is then added.
    """

    b: Builder
    value: Value
    source: TileBuffer
    saved: int
    added: TileBuffer | None = None

    def __call__(self, into: TileBuffer, first: int) -> None:
        """Have them written, from the given one on."""
        added = self.added
        self.b.emit(lambda: ("normalise", BY_TILES, self.source.channels, {
            **self.source.rows(first, into.height).columns_of_kind("in"), **into.columns_of_kind("out"), **into.sides,
            "saved": self.saved,
            **(no_buffer_of_kind("b") if added is None else added.rows(first, into.height).columns_of_kind("b")),
            "relu": int(self.value.rectified),
        }))  # fmt: skip


@dataclass(frozen=True, eq=False)
class NormalisedGradientRows:
    """Rows of the gradient behind a normalisation.

    source: what was normalised. grad: the gradient of what that gave. saved: where its constants lie.
    """

    b: Builder
    source: TileBuffer
    grad: TileBuffer
    saved: int

    def __call__(self, into: TileBuffer, first: int, target: GradientTarget | None = None) -> None:
        """Have them written, from the given one on. target: where a gradient goes as a whole."""
        self.b.emit(lambda: ("normalise_gradient", BY_TILES, self.source.channels, {
            **self.source.rows(first, into.height).columns_of_kind("in"),
            **self.grad.rows(first, into.height).columns_of_kind("grad"), **into.columns("into"), **into.sides,
            "saved": self.saved, **({"accumulate": 0, "gate": -1} if target is None else target.columns),
        }))  # fmt: skip
