"""A masked dense module and the sparse one of it: what tests of `lf.sparse_module` share."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from sparse_programs import TOLERANCE
from torch import Tensor, nn

import lthfunc as lf

CLASSES = 3


class Pair(NamedTuple):
    """dense: with its pruned weights at zero. sparse: the same on its survivors."""

    dense: nn.Module
    sparse: lf.SparseModule
    masks: lf.Masks


def convolutional() -> nn.Module:
    """Without a bias before the normalisation, whose gradient would be nothing but rounding."""
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 4, 3),
        nn.ReLU(), nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, CLASSES),
    )  # fmt: skip


def masks_of(net: nn.Module, density: float = 0.4, seed: int = 0) -> lf.Masks:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(leaf.shape, generator=generator) < density
        for name, leaf in net.named_parameters() if leaf.ndim > 1
    }  # fmt: skip


def pair(net: nn.Module | None = None, masks: lf.Masks | None = None) -> Pair:
    if net is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = convolutional()
    masks = masks_of(net) if masks is None else masks
    with torch.no_grad():
        for name, leaf in net.named_parameters():
            if name in masks:
                leaf.copy_(torch.where(masks[name], leaf, 0))
    return Pair(net, lf.sparse_module(net, masks), masks)


def part(found: nn.Module, name: str) -> Any:
    """A submodule."""
    return found.get_submodule(name)


def batch(count: int = 20, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 2, 8, 8, generator=generator)
    return x, torch.randint(0, CLASSES, (count,), generator=generator)


def check(name: str, found: Tensor | None, wanted: Tensor | None, eager: Tensor | None = None) -> None:
    """Within the tolerance of the largest of a leaf, and a few times what the eager float32 module differs by."""
    if wanted is None:
        assert found is None, name
        return
    assert found is not None, name
    if wanted.numel():
        found, wanted = found.detach(), wanted.detach()
        rounding = 0.0 if eager is None else float((eager.detach().double() - wanted).abs().max())
        limit = TOLERANCE * float(wanted.abs().max()) + 10 * rounding + 1e-6
        assert float((found.double() - wanted).abs().max()) <= limit, name


def check_gradients(found: Pair, wide: nn.Module, eager: nn.Module | None = None) -> None:
    """Those of the survivors against those of a float64 module."""
    wanted = dict(wide.named_parameters())
    others: Any = {} if eager is None else dict(eager.named_parameters())

    def survivors(leaf: Any, name: str) -> Tensor | None:
        if leaf is None or leaf.grad is None:
            return None
        kept: Tensor = leaf.grad[found.masks[name]] if name in found.masks else leaf.grad
        return kept

    for name, leaf in found.sparse.named_parameters():
        check(name, leaf.grad, survivors(wanted[name], name), survivors(others.get(name), name))
