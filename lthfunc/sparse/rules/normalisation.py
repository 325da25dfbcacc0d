"""Batch normalisation, in training and in evaluation mode."""

from __future__ import annotations

from typing import Any

from lthfunc.sparse.builder import Builder, Value, View
from lthfunc.sparse.kernels.instructions import BY_ROWS, BY_TILES
from lthfunc.sparse.places import nowhere
from lthfunc.sparse.rules.interface import Buffer, Unsupported

#: Numbers that the kernels keep for a channel (normalisation.cpp).
_SAVED = 6


def batch_norm(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """batch_norm(x, weight, bias, mean, variance, training, momentum, eps)."""
    view, weight, bias, mean, variance, training, momentum, epsilon = args[:8]
    if b.training and not training:
        raise Unsupported("with frozen statistics in training")
    if training and not (isinstance(mean, Buffer) and isinstance(variance, Buffer)):
        raise Unsupported("without running statistics")
    scale = view.value.scale if not training and view.value.only_read and not view.value.rectified else None
    x = view.value if scale else b.read(view)
    place = x.place
    saved = b.numbers([0.0] * (_SAVED * place.channels))
    settings = b.numbers([float(momentum), float(epsilon)])
    size = {"height": place.height, "width": place.width}
    leaves = [-1 if param is None else b.leaves[param.name].first for param in (weight, bias)]

    def statistics() -> Any:
        return "batch_statistics", BY_ROWS, place.channels, {
            **place.named("in"), **size, "saved": saved, "running_mean": b.statistics[mean.name],
            "running_variance": b.statistics[variance.name], "momentum": settings, "epsilon": settings + 1,
            "training": int(training), "weight": leaves[0], "bias": leaves[1],
        }  # fmt: skip

    if scale is not None:  # in evaluation the layer before does it as it writes
        b.emit_first(statistics)
        scale(saved)
        return view
    out = Value(b.place(place.channels, place.height, place.width), needs=True, rectifiable=True)

    def write(other: View | None) -> None:
        def late() -> Any:
            added = nowhere("b") if other is None else other.value.place.named("b")
            return "normalise", BY_TILES, place.channels, {
                **place.named("in"), **out.place.named("out"), **size, "saved": saved, **added,
                "relu": int(out.rectified),
            }  # fmt: skip

        b.emit(late)

    b.emit(statistics)
    out.pending = write

    def gradient() -> None:
        grad = b.gradient_of(out)

        def sums() -> Any:
            return "normalise_sums", BY_ROWS, place.channels, {
                **place.named("in"), **grad.named("grad"), **size, "saved": saved, "weight": leaves[0],
                "weight_gradient": leaves[0], "bias_gradient": leaves[1],
            }  # fmt: skip

        b.emit(sums)
        if x.needs:
            target = b.target(x)

            def late() -> Any:
                return "normalise_gradient", BY_TILES, place.channels, {
                    **place.named("in"), **grad.named("grad"), **target.place.named("into"), **size, "saved": saved,
                    **target.columns,
                }  # fmt: skip

            b.emit(late)
        b.release(out)

    b.backward.append(gradient)
    return View(out, view.flat)
