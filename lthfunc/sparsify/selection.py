"""Selection: which weights remain. Scores, masks and counts in, masks out."""

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
    """Select the best `keep` of the remaining weights in each layer; the new masks nest in the old ones.

    Exactly min(keep, remaining) weights remain. Among equal scores the lower flat index wins, so the same trees give
    the same masks on every device. Returns the new masks.

    >>> scores, masks = {"w": torch.tensor([3.0, 1.0, 2.0])}, {"w": torch.tensor([True, True, False])}
    >>> lf.unstructured(scores, masks, {"w": torch.tensor(1)})
    {'w': tensor([ True, False, False])}
    """
    return {name: (ranks(scores[name], mask) < keep[name].to(mask.device)) & mask for name, mask in masks.items()}
