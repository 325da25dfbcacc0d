"""Splits, slices and pads of features count their places anew when some are gone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from networks_with_features import noisy
from test_narrowing import agree, numbers, revived
from torch import Tensor, nn

import lthfunc as lf


class Pieces(nn.Module):
    """Features split, sliced with steps, selected, padded and joined again."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.left, self.right = nn.Linear(4, 12), nn.Linear(4, 3), nn.Linear(6, 2)
        self.padded, self.even = nn.Linear(10, 2), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        left, right = h.split([4, 8], -1)
        gate, right = right.chunk(2, -1)
        padded = F.pad(right, (4, 2)) + F.pad(self.left(x), (3, 4))
        joined = torch.cat([left[..., 1:3], right * gate], -1)
        out: Tensor = self.right(joined) + self.even(h[..., ::2]) + self.padded(padded)
        return out


def test_places_are_counted_anew() -> None:
    model = lf.from_module(Pieces())
    groups = lf.dependency_groups(model, (3, 4))
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    for density in (0.8, 0.5, 0.3):
        state = revived(lf.prune_groups(groups, density=density)(noisy(lf.init(model))))
        small = lf.compact(model, state, (3, 4))
        agree(small, model, state, x)
        assert numbers(small.params) < numbers(state.params)
        assert small.params["first.weight"].shape[0] < 12
