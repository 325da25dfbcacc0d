"""Pixel shuffle and its inverse: channels become places of an image, and the other way round (Shi et al. 2016)."""

from __future__ import annotations

import functools
from typing import Any

from lthfunc.sparse.builder import Builder, Operation, Value, View
from lthfunc.sparse.kernels.instructions import BY_TILES
from lthfunc.sparse.lowerings.interface import Unsupported, aten, lowers
from lthfunc.sparse.tile_buffers import TileBuffer


@lowers(aten.pixel_shuffle.default)
def pixel_shuffle(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """(channels · r², height, width) to (channels, height · r, width · r)."""
    channels, height, width = _image(args[0])
    factor = int(args[1])
    out = TileBuffer(channels // factor**2, height * factor, width * factor)
    return _shuffled(b, args[0], out, factor, spread=True)


@lowers(aten.pixel_unshuffle.default)
def pixel_unshuffle(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """(channels, height · r, width · r) to (channels · r², height, width)."""
    channels, height, width = _image(args[0])
    factor = int(args[1])
    out = TileBuffer(channels * factor**2, height // factor, width // factor)
    return _shuffled(b, args[0], out, factor, spread=False)


def _image(view: View) -> tuple[int, int, int]:
    if view.flat:
        raise Unsupported("on flattened values")
    return view.value.buffer.size


def _shuffled(b: Builder, view: View, buffer: TileBuffer, factor: int, *, spread: bool) -> View:
    """Copies between every factor²-th channel and every factor-th row and column. spread: from channels to places."""
    out = Value(buffer, view.value.needs)

    def channels_of(prefix: str, side: TileBuffer, number: int) -> dict[str, int]:
        return {
            prefix: side.first + number * side.channel, f"{prefix}_tile": side.tile,
            f"{prefix}_channel": factor**2 * side.channel, f"{prefix}_row": side.row, f"{prefix}_column": 1,
        }  # fmt: skip

    def places_of(prefix: str, side: TileBuffer, number: int) -> dict[str, int]:
        return {
            prefix: side.first + number // factor * side.row + number % factor, f"{prefix}_tile": side.tile,
            f"{prefix}_channel": side.channel, f"{prefix}_row": factor * side.row, f"{prefix}_column": factor,
        }  # fmt: skip

    def copies(read: TileBuffer, into: TileBuffer, accumulate: int, *, spread: bool) -> None:
        one, other = (channels_of, places_of) if spread else (places_of, channels_of)
        small = read if spread else into

        def one_copy(number: int) -> Any:
            return "copy", BY_TILES, small.channels // factor**2, {
                **one("in", read, number), **other("out", into, number), **small.sides,
                "accumulate": accumulate, "gate": -1,
            }  # fmt: skip

        for number in range(factor**2):
            b.emit(functools.partial(one_copy, number))

    def emit(operation: Operation) -> None:
        (x,) = operation.inputs
        b.hold(out.buffer)
        copies(x.buffer, out.buffer, 0, spread=spread)

        def gradient() -> None:
            if not x.needs:
                return
            grad, target = b.gradient_of(out), b.target(x)
            copies(grad, target.buffer, int(target.accumulate), spread=not spread)
            if target.gate is not None:
                b.rectify(target, target.gate)
            b.release(out)

        b.backward.append(gradient)

    b.operations.append(Operation([view.value], out, emit))
    return View(out)
