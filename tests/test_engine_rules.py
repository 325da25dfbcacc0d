"""The rules of faster code that engines trace: when they apply, and what they give."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from lthfunc.training.engines import gemm, im2col as im2col_module
from lthfunc.training.engines.aliases import changed_by, free_views, is_seen_elsewhere, memory_of
from lthfunc.training.engines.im2col import convolution_backward, im2col
from lthfunc.training.engines.pooling import _keeps, max_pool, max_pool_backward
from lthfunc.training.engines.realized import realized

NHWC = torch.channels_last


@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
@pytest.mark.parametrize("padding", [(0, 0), (1, 2)])
@pytest.mark.parametrize("window", [(3, 3), (2, 4)])
def test_columns_are_pytorchs_unfolded_images(
    window: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> None:
    x = torch.randn(3, 2, 9, 8, dtype=torch.float64)
    theirs = F.unfold(x, window, padding=padding, stride=stride)  # (images, channel · window, places)
    places = theirs.shape[-1]
    expected = theirs.view(3, 2, -1, places).permute(2, 1, 0, 3).reshape(-1, 3 * places)
    assert torch.equal(im2col(x, window, stride, padding), expected)


def _backward(**changed: Any) -> Any:
    """(the rule's answer to a convolution's gradient with one thing changed, PyTorch's)."""
    filters, channels, window = changed.get("filters", 64), changed.get("channels", 1), changed.get("window", (3, 3))
    x = torch.randn(2, channels, 6, 6).to(changed.get("dtype", torch.float32))
    weight = torch.randn(filters, channels, *window, dtype=x.dtype)
    grad = torch.randn(2, filters, 7 - window[0], 7 - window[1], dtype=x.dtype)
    wanted = changed.get("wanted", [False, True, True])
    given = [grad, x, weight, [filters], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, wanted]
    for place, value in changed.get("put", {}).items():
        given[place] = value
    theirs = None if "put" in changed else torch.ops.aten.convolution_backward(*given)
    return convolution_backward(*given), theirs


@pytest.mark.skipif(not gemm.has_one_dnn(), reason="this PyTorch has no oneDNN")
@pytest.mark.parametrize("changed", [{}, {"channels": 32, "window": (1, 1)}, {"channels": 2, "window": (4, 4)}])
def test_a_small_filters_gradient_is_one_product(changed: dict[str, Any]) -> None:
    (nothing, of_weight, of_bias), expected = _backward(**changed)
    assert nothing is None
    torch.testing.assert_close(of_weight, expected[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(of_bias, expected[2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "changed",
    [
        {"filters": 63},
        {"channels": 33, "window": (1, 1)},
        {"dtype": torch.float64},
        {"wanted": [True, True, True]},
        {"wanted": [False, False, True]},
        {"put": {6: [1, 2]}},
        {"put": {6: [2, 1]}},
        {"put": {7: True}},
        {"put": {9: 2}},
        {"put": {1: torch.randn(1, 6, 6)}},
        {"put": {1: torch.empty(2, 1, 6, 6, device="meta")}},
    ],
)
def test_other_convolutions_are_left_to_pytorch(changed: dict[str, Any]) -> None:
    assert _backward(**changed)[0] is NotImplemented


def test_without_one_dnn_convolutions_are_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(im2col_module, "has_one_dnn", lambda: False)
    assert _backward()[0] is NotImplemented


def _pool(x: Tensor, kernel: Any = (2, 2), stride: Any = (), padding: Any = (0, 0), dilation: Any = (1, 1)) -> Any:
    """What the two rules of pooling say: whether each applies."""
    grad, indices = torch.zeros(1), torch.zeros(1)
    with suppress(RuntimeError):  # a gradient of a wrong shape, where the rule takes it
        if max_pool_backward(grad, x, kernel, stride, padding, dilation, False, indices) is NotImplemented:
            assert max_pool(x, kernel, stride, padding, dilation) is NotImplemented
            return "neither"
    return "gradient" if max_pool(x, kernel, stride, padding, dilation) is NotImplemented else "both"


def test_pooling_is_rewritten_where_windows_tile_the_image() -> None:
    x = torch.randn(2, 64, 4, 6).contiguous(memory_format=NHWC)
    assert _pool(x) == _pool(x, stride=[2, 2]) == _pool(x, [4, 3]) == "both"
    assert _pool(x[:, :63].contiguous(memory_format=NHWC)) == "gradient"
    for kernel, stride, padding, dilation in (
        ([3, 2], [], [0, 0], [1, 1]),  # 4 rows
        ([2, 4], [], [0, 0], [1, 1]),  # 6 columns
        ([2, 2], [2, 1], [0, 0], [1, 1]),
        ([2, 2], [], [1, 0], [1, 1]),
        ([2, 2], [], [0, 1], [1, 1]),
        ([2, 2], [], [0, 0], [2, 1]),
        ([2, 2], [], [0, 0], [1, 2]),
        ([2], [], [0, 0], [1, 1]),
    ):
        assert _pool(x, kernel, stride, padding, dilation) == "neither", (kernel, stride, padding, dilation)
    assert _pool(x.contiguous()) == _pool(x[0]) == "neither"
    assert _keeps(x)
    assert not _keeps(x.to("meta"))
    assert not _keeps(x[:, :63])


def test_a_windows_gradient_goes_to_its_first_maximum() -> None:
    """By plain loops, with ties and unlike sides of windows."""
    x = torch.randint(0, 3, (2, 5, 4, 6)).float().contiguous(memory_format=NHWC)
    grad = torch.randn(2, 5, 2, 2)
    found = max_pool_backward(grad, x, [2, 3], [2, 3], [0, 0], [1, 1], False, torch.zeros(1))
    expected = torch.zeros_like(x)
    for n in range(2):
        for c in range(5):
            for row in range(2):
                for column in range(2):
                    window = x[n, c, 2 * row : 2 * row + 2, 3 * column : 3 * column + 3]
                    place = int(window.flatten().argmax() if (window == window.max()).sum() == 1 else -1)
                    if place < 0:
                        place = (window.flatten() == window.max()).tolist().index(True)
                    expected[n, c, 2 * row + place // 3, 3 * column + place % 3] = grad[n, c, row, column]
    assert torch.equal(found, expected)


def test_what_is_laid_out_lies_row_by_row() -> None:
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=NHWC)
    kept = realized(x)
    assert torch.equal(kept, x)
    assert kept.stride() == (60, 20, 5, 1)


@pytest.mark.skipif(not gemm.has_one_dnn(), reason="this PyTorch has no oneDNN")
def test_products_pay_from_a_million_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm, "has_wide_amd_cores", lambda: True)
    a, b, bias = torch.randn(100, 50), torch.randn(50, 200), torch.randn(200)
    torch.testing.assert_close(gemm.mm(a, b), a @ b, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gemm.addmm(bias, a, b), bias + a @ b, rtol=1e-4, atol=1e-4)
    for mine, theirs in ((a[:99], b), (a, b[:, 1:]), (a[:, 1:], b[1:]), (a.double(), b.double())):
        assert gemm.mm(mine, theirs) is NotImplemented
    assert gemm.mm(a.to("meta"), b.to("meta")) is NotImplemented
    for changed in ({"beta": 2}, {"alpha": 2}):
        assert gemm.addmm(bias, a, b, **changed) is NotImplemented
    assert gemm.addmm(bias[None], a, b) is gemm.addmm(bias, a[:99], b) is NotImplemented
    monkeypatch.setattr(gemm, "has_one_dnn", lambda: False)
    assert gemm.mm(a, b) is NotImplemented


def test_a_product_has_its_shape_before_it_is_computed() -> None:
    a, b = torch.empty(3, 4, device="meta"), torch.empty(4, 7, device="meta")
    assert gemm._gemm_shape(a, b, None).shape == (3, 7)
    assert gemm._gemm_shape(a.double(), b, None).dtype == torch.float64


# ---- what changes in place ----


def _graph(function: Any, *example: Tensor) -> Any:
    return make_fx(function, tracing_mode="fake")(*example).graph


def _node(graph: Any, name: str, number: int = 0) -> Any:
    return [node for node in graph.nodes if name in str(node.target)][number]


def test_who_shares_memory_and_who_changes_it() -> None:
    def function(x: Tensor, y: Tensor) -> Tensor:
        row = x.view(-1)
        row.add_(y)
        torch._foreach_mul_([x, y], 2.0)
        return torch.where(x.bool() & x.bool(), x.sum(), y.sum())

    graph = _graph(function, torch.randn(2, 3), torch.randn(6))
    x, y = (node for node in graph.nodes if node.op == "placeholder")
    row = _node(graph, "view")
    assert memory_of(x) == memory_of(row) != memory_of(y)
    assert 0 not in (memory_of(x), memory_of(y))
    assert memory_of(_node(graph, "output")) == 0
    assert changed_by(_node(graph, "add_")) == [row]
    assert changed_by(_node(graph, "_foreach_mul_")) == [x, y]
    for name in ("view", "__and__" if "__and__" in str(graph) else "bitwise_and", "sum", "output"):
        assert changed_by(_node(graph, name)) == []
    assert changed_by(x) == []


def test_a_change_is_seen_where_the_same_memory_is_read_later() -> None:
    def seen(function: Any, name: str = "add_") -> bool:
        graph = _graph(function, torch.randn(2, 3), torch.randn(2, 3))
        at = {node: number for number, node in enumerate(graph.nodes)}
        change = _node(graph, name)
        (changed,) = changed_by(change)
        return is_seen_elsewhere(change, changed, at)

    def read_later(x: Tensor, y: Tensor) -> Tensor:
        row = x.clone()
        view = row.view(-1)
        row.add_(y)
        return view * 2

    def read_before(x: Tensor, y: Tensor) -> Tensor:
        row = x.clone()
        sum_ = row.view(-1).sum()
        row.add_(y)
        return sum_ * 2

    def made_later(x: Tensor, y: Tensor) -> Tensor:
        row = x.clone()
        row.add_(y)
        return row.view(-1) * 2

    def of_others(x: Tensor, y: Tensor) -> Tensor:
        row, other = x.clone(), y.view(-1)
        row.add_(y)
        return other * 2

    def itself(x: Tensor, y: Tensor) -> Tensor:
        row = x.clone()
        torch._foreach_add_([row], [y])  # whose result is the tensor itself, without a new name
        return row * 2

    assert not seen(itself, "_foreach_add_")
    assert [seen(each) for each in (read_later, read_before, made_later, of_others)] == [True, False, False, False]


def test_views_become_copies_but_for_what_is_changed() -> None:
    def function(x: Tensor, y: Tensor) -> Tensor:
        x.view(-1).add_(1)
        return y.view(-1)

    graph = _graph(function, torch.randn(2, 3), torch.randn(2, 3))
    free_views(graph)
    called = [str(node.target) for node in graph.nodes]
    assert [name for name in called if "view" in name or "reshape" in name] == [
        "aten.view.default", "aten.reshape.default",
    ]  # fmt: skip
