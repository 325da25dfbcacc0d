"""Columns of a product's instruction for what it may do besides."""

from __future__ import annotations

from collections.abc import Mapping

from lthfunc.sparse.builder import Builder, Normalised
from lthfunc.sparse.tile_buffers import VECTOR_BYTES, TileBuffer, no_buffer, no_buffer_of_kind

#: Bytes of a value from which it goes past the caches to memory: more than a second-level cache holds.
_STREAMED_BYTES = 1 << 20
#: Of a product that nothing is fused with: no maxima, no normalisation, no addition.
UNFUSED = {"pool": 0, "codes": -1, "saved": -1, **no_buffer("b")}


def sums_at(sums: TileBuffer | None) -> dict[str, int]:
    """Where a tile's sums lie, if any are taken, as columns."""
    return {"sums": -1, "sums_tile": 0} if sums is None else {"sums": sums.first, "sums_tile": sums.tile}


def sums_columns(sums: TileBuffer | None) -> dict[str, int]:
    """The columns of the sums that a product takes of what it writes."""
    return {**sums_at(sums), "goes_on": 0, **no_buffer_of_kind("norm"), "norm_saved": -1, "norm_relu": 0}


def norm_columns(norm: Normalised | None) -> dict[str, int]:
    """The columns of the sums that it takes of a gradient, for the batch normalisation before it."""
    if norm is None:
        return sums_columns(None)
    of = {"norm_saved": norm.saved, "norm_relu": int(norm.gates)}
    return {**sums_columns(norm.sums), **norm.value.buffer.columns_of_kind("norm"), **of}


def streamed_columns(columns: Mapping[str, int], b: Builder, outputs: TileBuffer) -> dict[str, int]:
    """Whether a product writes past the caches: nothing else is done to its outputs, and normalisation reads them next,
    when all tiles are written.

    columns: the product's own.
    """
    normalised_next = columns["sums"] >= 0 and columns["norm"] < 0
    alone = not columns["relu"] and columns["b"] < 0 and columns["saved"] < 0
    return {"streamed": int(normalised_next and alone and goes_past_caches(b, outputs))}


def goes_past_caches(b: Builder, value: TileBuffer) -> bool:
    """Whether what is read again once all tiles are written is more than a second-level cache holds."""
    return b.tiles * value.vectors * VECTOR_BYTES > _STREAMED_BYTES
