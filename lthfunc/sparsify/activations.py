"""What layers read, and a score made of it: Wanda."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from lthfunc.sparsify.scores import Score, Scores
from lthfunc.trees.model import Model, linear_inputs
from lthfunc.trees.ops import apply_masks
from lthfunc.trees.types import Masks, Params, TrainState

#: Per linear layer's weight, the second moments of its inputs: float64 (features, features), means over rows.
Moments = dict[str, Tensor]


def input_moments(model: Model, state: TrainState, inputs: Sequence[Tensor]) -> Moments:
    """X^T X / n for every linear layer of the masked network, over batches of (scaled) inputs."""
    params = apply_masks(state.params, state.masks)
    totals: Moments = {}
    rows: dict[str, int] = {}
    for x in inputs:
        for name, read in linear_inputs(model, params, state.buffers, x).items():
            flat = read.reshape(-1, read.shape[-1]).double()
            totals[name] = totals.get(name, 0) + flat.T @ flat
            rows[name] = rows.get(name, 0) + len(flat)
    return {name: total / rows[name] for name, total in totals.items()}


def wanda(moments: Mapping[str, Tensor]) -> Score:
    """|w| · ‖x‖, the root mean square of the input that the weight reads (Sun et al. 2024, eq. 1).

    Layers without moments (convolutions) are scored by magnitude alone. Theirs compares within an output's weights:
    select with `per_output`.
    """

    def score(params: Params, masks: Masks) -> Scores:
        def of(name: str) -> Tensor:
            size = params[name].abs()
            return size * moments[name].diagonal().sqrt().to(size) if name in moments else size

        return {name: of(name) for name in masks}

    return score
