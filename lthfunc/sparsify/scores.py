"""Scores: how much each weight is worth keeping. Params and masks in, one float per weight out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.errors import UserError, invalid
from lthfunc.tracebacks import call_user_function, function_name, is_library_function
from lthfunc.trees.ops import clone
from lthfunc.trees.rng import generator
from lthfunc.trees.types import Masks, Params

#: One float leaf per prunable parameter, of its shape; higher = keep. Finite.
Scores = dict[str, Tensor]
Score = Callable[[Params, Masks], Scores]


@public
def magnitude(params: Params, masks: Masks) -> Scores:
    """|w| (Han et al. 2015, sec. 3; the score of Frankle & Carbin 2019): one leaf of `params` per mask of `masks`.

    >>> lf.magnitude({"w": torch.tensor([-2.0, 1.0])}, {"w": torch.tensor([True, True])})
    {'w': tensor([2., 1.])}
    """
    return {name: params[name].abs() for name in masks}


@public
def random_scores(seed: int, *counters: int | str) -> Score:
    """A score drawn uniformly from [0, 1), always the same for the same (seed, counters) and parameter name.

    With the same seed in every round the pruned sets nest, as in the random sparse networks of Frankle & Carbin 2019,
    sec. 2.

    >>> params, masks = {"w": torch.zeros(3)}, {"w": torch.ones(3, dtype=torch.bool)}
    >>> torch.equal(lf.random_scores(1)(params, masks)["w"], lf.random_scores(1)(params, masks)["w"])
    True
    """

    def draw(name: str, mask: Tensor) -> Tensor:
        drawn = torch.rand(mask.shape, generator=generator(seed, "random-score", *counters, name))
        return drawn.to(mask.device)

    def score(params: Params, masks: Masks) -> Scores:
        return {name: draw(name, mask) for name, mask in masks.items()}

    return score


@public
def inverted_score(score: Score) -> Score:
    """The negative of a score: what it would prune first remains (the ablation of Frankle et al. 2021, sec. 5).

    >>> lf.inverted_score(lf.magnitude)({"w": torch.tensor([-2.0, 1.0])}, {"w": torch.tensor([True, True])})
    {'w': tensor([-2., -1.])}
    """
    looked_at = checked_score(score)
    return lambda params, masks: {name: -leaf for name, leaf in looked_at(params, masks).items()}


@public
def checked_score(score: Score, later: list[Tensor] | None = None) -> Score:
    """The score with a check of what it returns: one real number, and no NaN, for each prunable weight.

    It gets copies of params and masks, so a user's score may write into them. later: a list to which a bool scalar is
    added for each scoring, whether any score is NaN, instead of waiting for a GPU each time. Raises UserError, when it
    is applied, for a score that returns something else.

    >>> lf.checked_score(lf.magnitude)({"w": torch.tensor([-2.0, 1.0])}, {"w": torch.tensor([True, True])})
    {'w': tensor([2., 1.])}
    """
    name = _named("score", score)

    def verified(params: Params, masks: Masks) -> Scores:
        scores = by_layer("score", score, (params, masks), masks, "one leaf")
        for layer, mask in masks.items():
            leaf = scores[layer]
            if not isinstance(leaf, Tensor) or leaf.dtype == torch.bool or leaf.is_complex():
                kind = leaf.dtype if isinstance(leaf, Tensor) else f"a {type(leaf).__name__}"
                raise invalid(name, f"{layer}: {kind}", "a tensor of real numbers")
            if leaf.shape != mask.shape:
                raise invalid(name, f"{layer} {tuple(leaf.shape)}", f"a leaf of shape {tuple(mask.shape)}")
        if not scores or any(torch._C._functorch.is_functorch_wrapped_tensor(leaf) for leaf in scores.values()):
            return scores  # under vmap numbers can't be looked at
        missing = torch.stack([leaf.isnan().any() for leaf in scores.values()])
        if later is not None:
            later.append(missing.any())
        else:
            for layer, found in zip(scores, missing.tolist(), strict=True):
                if found:
                    bad, size = int(scores[layer].isnan().sum()), scores[layer].numel()
                    raise UserError(f"{name}: {bad:,} of {size:,} scores of {layer} are NaN")
        return scores

    return verified


def by_layer(
    option: str, function: Callable[..., Any], arguments: tuple[Any, ...], masks: Masks, what: str
) -> dict[str, Any]:
    """What a function returns for copies of the arguments, which must be `what` for each layer. Raises UserError."""
    given, name = clone(arguments), _named(option, function)
    found: Any = (
        function(*given)
        if is_library_function(function)
        else call_user_function(option, function_name(function), lambda: function(*given))
    )
    if not isinstance(found, dict) or found.keys() != masks.keys():
        shown = list(found) if isinstance(found, dict) else type(found).__name__
        raise invalid(name, shown, f"a function that returns {what} for each of {', '.join(masks)}")
    return found


def _named(option: str, function: Callable[..., Any]) -> str:
    return option if is_library_function(function) else f"{option}: {function_name(function)!r}"
