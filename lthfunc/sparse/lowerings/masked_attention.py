"""Attention with a mask: products, a softmax and another product, which any mask can stand between."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lthfunc.sparse.builder import Builder, View
from lthfunc.sparse.lowerings.broadcasting import add
from lthfunc.sparse.lowerings.dimensions import repeat_interleave
from lthfunc.sparse.lowerings.interface import Unsupported, aten, lowers
from lthfunc.sparse.lowerings.matmul import matmul, softmax
from lthfunc.sparse.lowerings.parameters import as_view
from lthfunc.sparse.lowerings.pointwise import dropout, pointwise
from lthfunc.sparse.lowerings.truths import chosen, kept_of
from lthfunc.sparse.views import arranged_view

#: What a masked score becomes: no infinity, so that a query without any key has weights at all, which then are zeroed.
_LEAST = torch.finfo(torch.float32).min


def is_causal(mask: Any, queries: int, keys: int) -> bool:
    """Whether a mask is the causal one: of truths, or of zeros and minus infinities."""
    if not isinstance(mask, Tensor) or mask.numel() != queries * keys or mask.shape[-2:] != (queries, keys):
        return False
    seen = torch.ones(queries, keys, dtype=torch.bool).tril()
    wanted = seen if mask.dtype == torch.bool else torch.zeros(queries, keys).masked_fill(~seen, -math.inf)
    return torch.equal(mask.reshape(queries, keys).to(wanted.dtype), wanted)


def masked_attention(b: Builder, operands: Sequence[View], mask: Any, dropped: float, scale: float | None) -> View:
    """softmax(q · kᵀ · scale + mask) · v. mask: numbers, or truths, of which a query needs none."""
    query, key, value = operands
    heads, shared = query.arrangement.sizes[1], key.arrangement.sizes[1]
    if len(query.arrangement.sizes) == 4 and heads != shared:
        if heads % shared:
            raise Unsupported("of heads that don't share keys and values evenly")
        key, value = (repeat_interleave(b, [view, heads // shared, 1], {}) for view in (key, value))
    order = [*range(len(key.arrangement.sizes) - 2), -1, -2]
    turned = arranged_view(key.value, key.arrangement.permuted(order))
    number = 1 / math.sqrt(query.arrangement.sizes[-1]) if scale is None else scale
    scores = pointwise(b, matmul(b, [query, turned], {}), "scale", number)
    truths = (mask.dtype if isinstance(mask, Tensor) else as_view(b, mask).value.dtype) == torch.bool
    kept = kept_of(b, mask) if truths else _finite(b, mask)
    masked = chosen(b, scores, kept, _LEAST) if truths else add(b, [scores, chosen(b, mask, kept, _LEAST)], {})
    weights = chosen(b, softmax(b, [masked, -1], {}), kept, 0.0)
    found: View = matmul(b, [dropout(b, [weights, dropped, True], {}), value], {})
    return found


def _finite(b: Builder, mask: Any) -> View | Tensor:
    """Where numbers leave anything of a score."""
    return mask > -math.inf if isinstance(mask, Tensor) else pointwise(b, mask, "gt", -math.inf)


@lowers(aten.baddbmm.default, arranged=True)
def products_beside(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """baddbmm(mask, q, kᵀ), of which nothing is scaled."""
    if any(kwargs.get(name, 1) != 1 for name in ("alpha", "beta")):
        raise Unsupported("with factors")
    found: View = add(b, [matmul(b, args[1:3], {}), args[0]], {})
    return found
