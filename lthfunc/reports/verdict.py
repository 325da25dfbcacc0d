"""What a run has found, in a sentence."""

from __future__ import annotations

from collections.abc import Sequence

from lthfunc.experiments.iterative import TICKET
from lthfunc.experiments.records import Row
from lthfunc.experiments.winner import Candidate, Choice

#: By how much training again may improve a trained network before one asks whether it was measured rightly.
_FAR = 0.02


def verdict(choice: Choice) -> str:
    """Which round won and why, or by how much all lost; empty if no round was pruned."""
    found = choice.winner or choice.best
    if found is None or choice.dense is None:
        return ""
    row, scale = found.row, found.row.scale
    reached, dense = (scale.text(each.val_accuracy.mean) for each in (row, choice.dense))
    apart, noise = scale.difference(-found.difference), scale.number(found.noise)
    side, less = ("above", "more") if scale.lower_is_better else ("below", "less")
    if choice.winner is None:
        explained = f" (noise explains {noise})" if found.noise else ""
        return (
            f"No pruned round won: the best of them, round {row.round}, reaches a validation {scale.word} of "
            f"{reached}, {apart}{explained} {side} the dense network's {dense}. {_certainty(found)}"
        )
    why = f", {apart} {less} but within the noise of {noise}" if found.difference < 0 else ""
    return (
        f"Winning ticket: round {row.round}, {100 * row.density:.1f} % of the weights, is the sparsest whose "
        f"validation {scale.word} is no worse than the dense network's: {reached} against {dense}{why}. "
        f"{_certainty(found)}"
    )


def normalisation_hint(choice: Choice) -> str:
    """A hint if retrained rounds are far better than the network that came trained; empty if not."""
    found = choice.winner or choice.best
    if found is None or choice.dense is None or not found.row.scale.unit or found.difference < _FAR:
        return ""
    return (
        f"Round 0 is your network as it came, without training; round {found.row.round}, which is trained here, is "
        f"{found.row.scale.difference(found.difference)} better. If you know your network as better, its training data "
        "were normalised otherwise than these, and no round may be compared with it: docs/how-to/models.md."
    )


def _certainty(found: Candidate) -> str:
    if found.standard_error is None:
        return "This is one seed: how much seeds differ is not known." if found.seeds < 2 else ""
    scale = found.row.scale
    mean = scale.number(scale.gain(found.difference, 0), signed=True)
    return (
        f"Over {found.seeds} seeds the difference is {mean} ± {scale.difference(found.standard_error)} "
        "(mean ± standard error)."
    )


def collapse(rows: Sequence[Row]) -> str | None:
    """A warning if a round emptied a layer, through which no signal passes."""
    for row in rows:
        empty = [name for name, density in row.layers.items() if density == 0]
        if row.variant == TICKET and empty:
            return (
                f"Layer collapse: from round {row.round} on no weights remain in {', '.join(empty)}; "
                "--min-layer-weights N keeps some weights in every layer."
            )
    return None
