"""Second moments of layers' inputs, and the score that uses them: Wanda."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.errors import UserError
from lthfunc.sparsify.scores import Score, Scores
from lthfunc.trees.layer_inputs import InputReader, layers_with_inputs
from lthfunc.trees.model import Model
from lthfunc.trees.module_calls import functional_call
from lthfunc.trees.module_errors import taking_inputs
from lthfunc.trees.ops import apply_masks, clone
from lthfunc.trees.prunable import transposed_weights
from lthfunc.trees.types import Masks, Params, TrainState


class Moments(dict[str, Tensor]):
    """The second moments of each weight's inputs: (features, features), float64 or complex128.

    Of a convolution, (channels of a group · kernel)², and as many matrices as it has groups where those are several.
    transposed: the weights that are stored as (inputs, outputs). diagonal: whether they are the diagonals alone.
    """

    transposed: frozenset[str] = frozenset()
    diagonal: bool = False


def stored_transposed(moments: Mapping[str, Tensor], name: str) -> bool:
    """Whether a weight is stored as (inputs, outputs)."""
    return name in getattr(moments, "transposed", ())


class MomentSums:
    """Adds up moments of rows of inputs."""

    def __init__(self, model: Model, diagonal: bool) -> None:
        self._model, self._diagonal = model, diagonal
        self._totals: dict[str, Tensor] = {}
        self._rows: dict[str, int] = {}

    def add(self, name: str, rows: Tensor) -> None:
        """Add rows (groups, rows, features)."""
        wide = rows.to(torch.complex128) if rows.is_complex() else rows.double()
        new = wide.abs().square().sum(1) if self._diagonal else wide.mT @ wide.conj()
        self._totals[name] = self._totals.get(name, 0) + (new[0] if len(new) == 1 else new)
        self._rows[name] = self._rows.get(name, 0) + rows.shape[1]

    def moments(self) -> Moments:
        """Their means."""
        found = Moments({name: total / self._rows[name] for name, total in self._totals.items()})
        found.transposed, found.diagonal = frozenset(transposed_weights(self._model.evaluating)), self._diagonal
        return found


@public
def input_moments(
    model: Model, state: TrainState, inputs: Sequence[Tensor], *, convolutions: bool = False, diagonal: bool = False
) -> Moments:
    """The second moments Xᵀ X / n of the inputs of every linear layer of the masked network.

    Of complex inputs Xᵀ X* / n. model, state: the network. inputs: batches of scaled inputs, (n, ...) each. A layer
    that is called several times, or whose weight others share, counts with all of its inputs. convolutions: also those
    of convolutions, whose rows of inputs are what one position of the output reads. diagonal: the diagonals alone,
    which `wanda` needs. Returns (features, features) in float64 for each weight.

    >>> model = lf.from_module(nn.Linear(4, 2))
    >>> lf.input_moments(model, lf.init(model), [torch.ones(3, 4)])["weight"].shape
    torch.Size([4, 4])
    """
    sums, masked = MomentSums(model, diagonal), apply_masks(state.params, state.masks)
    names = layers_with_inputs(model, convolutions)
    for batch in inputs:
        params, buffers, x = clone((masked, state.buffers, batch))  # whatever the module does to them
        reading = InputReader(names, params, sums.add)
        with taking_inputs(model.name, x.shape[1:], model.evaluating), torch.no_grad(), reading:
            functional_call(model.evaluating, {**params, **buffers}, (x,))
    return sums.moments()


def check_moments(moments: Mapping[str, Tensor], name: str, leaf: Tensor) -> None:
    """Raise UserError where moments don't match a layer's inputs."""
    inputs = leaf.shape[0] if stored_transposed(moments, name) else leaf[0].numel()
    shape = tuple(moments[name].shape)
    wanted = (inputs,) if getattr(moments, "diagonal", False) else (inputs, inputs)
    groups = shape[: -len(wanted)]
    if shape[len(groups) :] != wanted or len(groups) > 1 or (groups and (leaf.ndim < 3 or len(leaf) % groups[0])):
        raise UserError(
            f"moments: {name!r} is of shape {shape}, and its layer reads {inputs} inputs; "
            "lf.input_moments(model, state, inputs) gives them"
        )


@public
def wanda(moments: Mapping[str, Tensor]) -> Score:
    """Wanda: |w| · ‖x‖, the root mean square of the input that a weight reads (Sun et al. 2024, eq. 1).

    moments: of `input_moments`, or their diagonals. Layers without moments are scored by magnitude. Theirs compares the
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
            each = moments[name] if getattr(moments, "diagonal", False) else moments[name].diagonal(dim1=-2, dim2=-1)
            read = each.real.sqrt().to(size)
            if stored_transposed(moments, name):
                return size * read[:, None]
            by_group = size.view(1 if read.ndim == 1 else len(read), -1, read.shape[-1])
            return (by_group * read.view(len(by_group), 1, -1)).view(size.shape)

        return {name: of(name) for name in masks}

    return score
