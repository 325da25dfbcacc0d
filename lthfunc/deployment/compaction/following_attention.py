"""What attention makes of labels: all numbers of a head go together."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.fx import Node

from lthfunc.deployment.compaction.following import Followed, Following, solid, unknown


def heads_of(known: Following, values: list[Followed], value: Tensor) -> Tensor | None:
    """Labels of (…, heads), after those of all values of a head were united; None where there is no axis of heads."""
    leading = value.shape[:-2]
    if leading.numel() == 1 or any(each.value.ndim != value.ndim for each in values):
        return None
    first: Tensor | None = None
    for each in values:
        labels = solid(known.of(each))
        if labels.shape[:-2] != leading:  # fewer keys and values than queries
            labels = labels.repeat_interleave(leading[-1] // labels.shape[-3], -3)
        first = labels[..., :1, :1] if first is None else first
        known.classes.unite(labels, first)
    assert first is not None
    known.heads.append(first.flatten())
    return first.expand(value.shape).clone()


def attention(known: Following, node: Node, given: Any, value: Any) -> Any:
    """Labels of attention's outputs: each head one unit; unknown where there is no axis of heads."""
    query, keys, values, *rest = given[0]
    mask = rest[0] if rest else given[1].get("attn_mask")
    free = mask is None or mask.value.ndim < 3 or mask.value.shape[:-2].numel() == 1
    labels = heads_of(known, [query, keys, values], value) if free else None
    if labels is None:
        return unknown(known, given, value)
    if mask is not None:
        known.fix(mask)
    nothing = ~(values.varies | (values.value != 0)).any(-2, keepdim=True)
    nothing = nothing.repeat_interleave(value.shape[-3] // nothing.shape[-3], -3)
    return Followed(labels, (~nothing).expand(value.shape), value)
