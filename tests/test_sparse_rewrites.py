"""Operations that the sparse engine writes as others: products with a parameter as it lies, views by other names."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from sparse_programs import check
from torch import Tensor, nn

from lthfunc.sparse.kernels import build

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))


class Turned(nn.Module):
    """``x @ weight`` of weights with and without a mask, `tokens` of them in an example, the first one tied."""

    def __init__(self, tokens: int, ins: int) -> None:
        super().__init__()
        self.tokens, self.ins = tokens, ins
        self.tied, self.own = nn.Linear(7, ins), nn.Parameter(torch.randn(7, 9))
        self.out = nn.Linear(9 * tokens, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(-1, self.tokens, self.ins) if self.tokens > 1 else x
        hidden = torch.tanh(x @ self.tied.weight)
        hidden = torch.tanh(self.tied(hidden)) @ self.tied.weight
        found: Tensor = self.out(torch.tanh(hidden @ self.own).flatten(1))
        return found


@pytest.mark.parametrize(("tokens", "ins"), [(1, 30), (1, 1), (5, 6), (17, 3)])
@pytest.mark.parametrize(("density", "batch"), [(0.0, 17), (0.3, 5), (1.0, 40)])
def test_products_with_a_parameter(tokens: int, ins: int, density: float, batch: int) -> None:
    check(Turned(tokens, ins), (tokens * ins,), batch, density, seed=1)


class Between(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.first, self.out = function, nn.Linear(12, 20), nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(self.function(torch.tanh(self.first(x))).flatten(1))
        return found


@pytest.mark.parametrize(
    "function",
    [
        lambda h: (h.view(-1, 4, 5) * 2).reshape_as(h) + h.view_as(h),
        lambda h: h.view(-1, 4, 5) * h[:, :5].unsqueeze(1).expand_as(h.view(-1, 4, 5)),
        lambda h: torch.cat([h.narrow(1, -5, 5), h.narrow(-1, 3, 7)], 1),
        lambda h: h.view(-1, 4, 5).narrow(2, 1, 3).narrow(1, 0, 2),
    ],
    ids=["view_as", "expand_as", "narrow", "narrow twice"],
)
def test_views_like_another_value(function: Callable[[Tensor], Tensor]) -> None:
    net = Between(function)
    net(torch.zeros(2, 12))
    check(net, (12,), 21, 0.4)
