"""Second moments of layers' inputs, and the score that uses them: Wanda."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.errors import UserError
from lthfunc.sparsify.scores import Score, Scores
from lthfunc.trees.layer_inputs import linear_inputs
from lthfunc.trees.model import Model
from lthfunc.trees.ops import apply_masks
from lthfunc.trees.prunable import transposed_weights
from lthfunc.trees.types import Masks, Params, TrainState


class Moments(dict[str, Tensor]):
    """The second moments of each linear weight's inputs: (features, features), float64 or complex128.

    transposed: the weights that are stored as (inputs, outputs).
    """

    transposed: frozenset[str] = frozenset()


def stored_transposed(moments: Mapping[str, Tensor], name: str) -> bool:
    """Whether a weight is stored as (inputs, outputs)."""
    return name in getattr(moments, "transposed", ())


@public
def input_moments(model: Model, state: TrainState, inputs: Sequence[Tensor]) -> Moments:
    """The second moments Xᵀ X / n of the inputs of every linear layer of the masked network.

    Of complex inputs Xᵀ X* / n. model, state: the network. inputs: batches of scaled inputs, (n, ...) each. A layer
    that is called several times, or whose weight others share, counts with all of its inputs. Returns (features,
    features) in float64 for each weight.

    >>> model = lf.from_module(nn.Linear(4, 2))
    >>> lf.input_moments(model, lf.init(model), [torch.ones(3, 4)])["weight"].shape
    torch.Size([4, 4])
    """
    params = apply_masks(state.params, state.masks)
    totals = Moments()
    totals.transposed = frozenset(transposed_weights(model.evaluating))
    rows: dict[str, int] = {}
    for x in inputs:
        for name, calls in linear_inputs(model, params, state.buffers, x).items():
            for read in calls:
                flat = read.reshape(-1, read.shape[-1])
                flat = flat.to(torch.complex128) if flat.is_complex() else flat.double()
                totals[name] = totals.get(name, 0) + flat.T @ flat.conj()
                rows[name] = rows.get(name, 0) + len(flat)
    for name, total in totals.items():
        totals[name] = total / rows[name]
    return totals


def check_moments(moments: Mapping[str, Tensor], name: str, leaf: Tensor) -> None:
    """Raise UserError where moments don't match a layer's inputs."""
    inputs = leaf.shape[0 if stored_transposed(moments, name) else 1] if leaf.ndim == 2 else None
    if inputs is not None and tuple(moments[name].shape) != (inputs, inputs):
        raise UserError(
            f"moments: {name!r} is of shape {tuple(moments[name].shape)}, and its layer reads {inputs} inputs; "
            "lf.input_moments(model, state, inputs) gives them"
        )


@public
def wanda(moments: Mapping[str, Tensor]) -> Score:
    """Wanda: |w| · ‖x‖, the root mean square of the input that a weight reads (Sun et al. 2024, eq. 1).

    moments: of `input_moments`. Layers without moments (convolutions) are scored by magnitude. Theirs compares the
    weights of one output: select with `per_output`. Returns a score.

    >>> model = lf.from_module(nn.Linear(4, 2))
    >>> state = lf.init(model)
    >>> score = lf.wanda(lf.input_moments(model, state, [torch.randn(16, 4)]))
    >>> lf.density(lf.prune(density=0.5, score=score, select=lf.per_output())(state).masks)
    0.5
    """

    def score(params: Params, masks: Masks) -> Scores:
        def of(name: str) -> Tensor:
            size = params[name].abs()
            if name not in moments:
                return size
            check_moments(moments, name, size)
            read = moments[name].diagonal().real.sqrt().to(size)
            return size * (read[:, None] if stored_transposed(moments, name) else read)

        return {name: of(name) for name in masks}

    return score
