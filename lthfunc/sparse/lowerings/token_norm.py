"""Layer and RMS normalisation over the last dimension of tokens."""

from __future__ import annotations

from typing import Any

from lthfunc.sparse.builder import Builder, FusedStep, Operation, Value, View
from lthfunc.sparse.kernels.instructions import BY_TILES, SUMS
from lthfunc.sparse.lowerings.interface import Param, Unsupported, argument, aten, claim, gradient_at, lowers, value_at
from lthfunc.sparse.lowerings.parameters import as_view
from lthfunc.sparse.lowerings.placing import as_tokens
from lthfunc.sparse.tile_buffers import TileBuffer

#: What PyTorch takes where RMS normalisation is given none.
_EPSILON = 1.1920928955078125e-07


@lowers(aten.rms_norm.default, arranged=True)
def rms_norm(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """rms_norm(x, shape, weight, eps) over the last dimension."""
    epsilon = argument(args, 3, None)
    return tokens_norm(
        b, as_view(b, args[0]), args[1], argument(args, 2, None), None,
        epsilon=_EPSILON if epsilon is None else float(epsilon), centred=False,
    )  # fmt: skip


def tokens_norm(
    b: Builder, view: View, shape: Any, weight: Param | None, bias: Param | None, *, epsilon: float, centred: bool
) -> View:
    """Each token's features, less their mean (`centred`), over the root of their mean square."""
    if tuple(shape) != view.arrangement.sizes[-1:]:
        raise Unsupported("over more than the last dimension")
    view = as_tokens(b, view)
    learns = claim(b, weight, bias)
    out = Value(TileBuffer(*view.value.buffer.size), needs=learns or view.value.needs)
    channels, height, width = out.buffer.size

    def emit(operation: Operation) -> None:
        (x,) = operation.inputs
        b.hold(out.buffer)
        saved = b.allocate(2 * height * width)
        number = b.numbers([epsilon])

        def shared() -> dict[str, int]:
            return {
                "width": width, "channels": channels, "saved": saved.first, "saved_tile": saved.tile,
                "centred": int(centred), "weight": value_at(b, weight),
            }  # fmt: skip

        b.emit(lambda: ("token_normalise", BY_TILES, height, {
            **x.buffer.columns("in"), **out.buffer.columns("out"), **shared(), "bias": value_at(b, bias),
            "epsilon": number, "relu": int(out.rectified),
        }))  # fmt: skip

        def gradient() -> None:
            if not out.needs:
                return
            grad = b.gradient_of(out)
            target = b.target(x) if x.needs else None
            into = {f"into{step}": -1 for step in ("", "_tile", "_channel", "_row")} | {"accumulate": 0, "gate": -1}
            b.emit(lambda: ("token_normalise_gradient", SUMS, 1, {
                **x.buffer.columns("in"), **grad.columns("grad"), "height": height, **shared(), **into,
                "weight_gradient": gradient_at(b, weight), "bias_gradient": gradient_at(b, bias),
                **({} if target is None else {**target.buffer.columns("into"), **target.columns}),
            }))  # fmt: skip
            b.release(out)

        b.backward.append(gradient)

    b.operations.append(Operation([view.value], out, emit, accepts=frozenset({FusedStep.RECTIFY})))
    return view.of(out)
