"""Parts of scores, by hand: complex weights, and networks of several outputs."""

from __future__ import annotations

import torch

from lthfunc.sparsify.gradient_scores import gradient_times_weight
from lthfunc.sparsify.synflow import _total


def test_a_complex_weight_counts_as_its_two_real_parts() -> None:
    gradient, weight = torch.randn(2, 5, dtype=torch.complex64)
    parts = gradient_times_weight(torch.view_as_real(gradient), torch.view_as_real(weight))
    torch.testing.assert_close(gradient_times_weight(gradient, weight), parts.sum(-1))


def test_synflow_adds_up_all_outputs_but_whole_numbers() -> None:
    first, second, counts = torch.rand(3, 2), torch.rand(4), torch.tensor([7, 8])
    assert float(_total((first, counts))) == float(first.sum())
    several = {"a": torch.complex(first, -first), "b": [second, counts]}
    torch.testing.assert_close(_total(several), first.sum() + second.sum())
