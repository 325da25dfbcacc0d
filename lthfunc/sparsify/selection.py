"""Selection: which weights stay. Scores, masks and keep counts in, masks out."""

from __future__ import annotations

from collections.abc import Callable

from lthfunc.arguments import public
from lthfunc.sparsify.allocation import KeepCounts
from lthfunc.sparsify.ranking import ranks
from lthfunc.sparsify.scores import Scores
from lthfunc.trees.types import Masks

Select = Callable[[Scores, Masks, KeepCounts], Masks]


@public
def unstructured(scores: Scores, masks: Masks, keep: KeepCounts) -> Masks:
    """In each layer the `keep` best of the remaining weights; the new masks nest in the old ones.

    Exact: min(keep, remaining) weights stay in each layer. Among equal scores the lower flat index stays, so
    the same trees give the same masks on every device. Weights already pruned never return.
    """
    return {name: (ranks(scores[name], mask) < keep[name].to(mask.device)) & mask for name, mask in masks.items()}
