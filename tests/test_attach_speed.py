"""What makes a step of an attached loop cheap, and changes no bit of what is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import gradient_of
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import lthfunc as lf
from lthfunc.loops.layer_mask import LayerMask
from lthfunc.sparse.kernels import build
from lthfunc.trees.ops import leaves

kernels = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))
#: Names of layouts: a parameter with more elements than a call of PyTorch is quicker for, the last vector not full.
LAYOUTS: dict[str, Callable[[], torch.Tensor]] = {
    "rows": lambda: torch.randn(129, 65),
    "columns": lambda: torch.randn(129, 65).t(),
    "channels last": lambda: torch.randn(33, 31, 3, 3).to(memory_format=torch.channels_last),
    "every second row": lambda: torch.randn(300, 65)[::2],
    "small": lambda: torch.randn(7, 5),
    "double": lambda: torch.randn(129, 65, dtype=torch.float64),
}


@kernels
@pytest.mark.parametrize("make", LAYOUTS.values(), ids=LAYOUTS)
def test_kernels_mask_with_the_bits_of_a_product(make: Any) -> None:
    build.load_kernels()
    torch.manual_seed(0)
    param = make()
    mask = torch.rand_like(param) < 0.3
    mask[0] = True  # vectors that lose nothing
    held = LayerMask(mask, param, kernels=True)
    for tensor in (param.clone(), param.contiguous(), torch.randn_like(param).requires_grad_()):
        tensor.detach()[1, :4] = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0]).view(
            -1, *(1,) * (param.ndim - 2)
        )
        before = tensor.detach().clone()
        with torch.no_grad():
            held.multiply(tensor)
            assert lf.same_bits(tensor.detach(), before * mask.to(before.dtype))
            held.add_to_pruned(tensor, 0.25)
        wanted = torch.where(mask, before, before * 0 + 0.25)
        torch.testing.assert_close(tensor.detach(), wanted, rtol=0, atol=0, equal_nan=True)


@kernels
def test_kernels_refuse_what_is_not_dense_or_has_another_mask() -> None:
    build.load_kernels()
    words = torch.zeros(2, dtype=torch.int32)
    for tensor, given in ((torch.ones(40)[::2], words), (torch.ones(33), words), (torch.ones(20).double(), words), (
        torch.ones(20), words.long())):  # fmt: skip
        with pytest.raises(ValueError, match=r"takes|must be"):
            torch.ops.lthfunc.mask_(tensor, given)
        with pytest.raises(ValueError, match=r"takes|must be"):
            torch.ops.lthfunc.add_pruned_(tensor, given, 1.0)


ROOTS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "Adam": lambda p: torch.optim.Adam(p, 0.01, betas=(0.9, 0.85)),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.01, amsgrad=True, foreach=True),
    "NAdam": lambda p: torch.optim.NAdam(p, 0.01),
    "RAdam": lambda p: torch.optim.RAdam(p, 0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 0.01),
}


def _trained(make: Any, steps: int, after: Callable[[], object] = lambda: None) -> tuple[nn.Linear, Any, Any]:
    """A layer of 129 × 65 in somebody's loop, pruned at steps 0 and 7. after: is called after each step."""
    torch.manual_seed(0)
    net = nn.Linear(65, 129)
    optimizer = make(net.parameters())
    attached = lf.attach(net, optimizer, [(0, lf.prune(density=0.3)), (7, lf.prune(density=0.2, keep_moments=True))])
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(8, 65)).square().mean().backward()
        optimizer.step()
        after()
    return net, optimizer, attached


class Roots(TorchDispatchMode):
    """Counts the roots of tensors of a shape, and the zeros and denormal numbers among what they are taken of."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shape, self.taken, self.slow = shape, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "sqrt" in str(func):
            of = [leaf for leaf in leaves(args) if isinstance(leaf, torch.Tensor) and leaf.shape == self.shape]
            self.taken += len(of)
            self.slow += sum(int((leaf < torch.finfo(leaf.dtype).tiny).sum()) for leaf in of)
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="only MKL's roots of zero are slow")
@pytest.mark.parametrize("make", ROOTS.values(), ids=ROOTS)
def test_roots_of_pruned_second_moments_are_not_those_of_zero(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    slow: list[int] = []
    with Roots((129, 65)) as roots:
        net, optimizer, attached = _trained(make, 130, lambda: slow.append(roots.slow))
    assert roots.taken >= 120  # RAdam takes none at first
    assert slow[-1] == slow[0]  # the first step makes the moments
    state, pruned = optimizer.state[net.weight], ~attached.masks["weight"]
    moments = {key for key in ("exp_avg_sq", "square_avg", "sum", "max_exp_avg_sq") if key in state}
    assert moments
    assert all(0 < state[key][pruned].max() < 1e-27 for key in moments)
    for ask in (optimizer.state_dict, lambda: attached.state, attached.detach):
        optimizer.step()
        assert any(state[key][pruned].any() for key in moments)
        ask()
        assert not any(state[key][pruned].any() for key in moments)
    assert not any(leaf.detach()[pruned].any() for leaf in (net.weight, gradient_of(net.weight)))

    monkeypatch.setattr("torch.backends.mkl.is_available", lambda: False)
    other, second, _ = _trained(make, 130)
    for _ in range(3):
        second.step()
    assert lf.same_bits(dict(net.state_dict()), dict(other.state_dict()))
    assert lf.same_bits(optimizer.state_dict()["state"], second.state_dict()["state"])


@pytest.mark.parametrize("elements", [8385, 35])
def test_what_changes_a_gradient_after_it_was_masked_is_masked(elements: int) -> None:
    net = nn.Linear(elements, 1, bias=False)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    attached = lf.attach(net, optimizer, [(0, lf.prune(density=0.3))])

    def replaced() -> None:
        net.weight.grad = torch.ones_like(net.weight)

    changes: list[Callable[[], object]] = [lambda: gradient_of(net.weight).add_(1), replaced]
    for change in changes:
        optimizer.zero_grad()
        net(torch.ones(2, elements)).sum().backward()
        change()
        optimizer.step()
        assert not net.weight.detach()[~attached.masks["weight"]].any()
