"""`lf.sparse_module` called as its module cannot be: PyTorch's reason, on what was given, in one line."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sparse_modules import convolutional, masks_of
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.sparse.kernels import build

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))


class Two(nn.Module):
    """Numbers, and a token of each example; `branch`: whether it asks what its outputs are."""

    def __init__(self, branch: bool = False) -> None:
        super().__init__()
        self.branch = branch
        self.a, self.b, self.out = nn.Linear(12, 8), nn.Embedding(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        found: Tensor = self.out(self.a(x) + self.b(words))
        return -found if self.branch and found.sum() > 0 else found


X, WORDS = torch.ones(20, 12), torch.arange(20) % 5
NORMED = nn.Sequential(nn.Linear(12, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))


def sparse(net: nn.Module) -> lf.SparseModule:
    return lf.sparse_module(net, masks_of(net))


def under_grad() -> Any:
    module = sparse(NORMED)
    leaves = dict(module.named_parameters())
    return torch.func.grad(lambda given: torch.func.functional_call(module, given, (X,)).sum())(leaves)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: sparse(NORMED)(X[:, :11]), r"fails in 0, Linear\(.*shapes cannot be multiplied \(20x11 and 12x4\)$"),
        (lambda: sparse(Two())(X), r"Two fails: .*missing 1 required positional argument: 'words'$"),
        (lambda: sparse(Two())(WORDS, X), r"Two fails in a, Linear\(.* \(line \d+ of .*test_sparse_module_refused"),
        (lambda: sparse(Two())(X, WORDS[:7]), r"Two fails \(line .*The size of tensor a \(20\) must match .* b \(7\)"),
        (lambda: sparse(Two(True))(X, WORDS), r"Two cannot be traced \(line .*: Python's control flow depends on num"),
        (lambda: sparse(NORMED)(X[:1]), "batch normalisation in training requires more than one example$"),
        (lambda: sparse(NORMED).set_masks(None, None), "^set_masks: masks must be a dict of bool tensors, not None"),  # type: ignore[arg-type]
        (under_grad, r"takes gradients by backward\(\), and cannot be called under torch.func"),
        (lambda: torch.vmap(sparse(NORMED))(X[:, None]), "cannot be called under torch.func"),
        (lambda: torch.export.export(sparse(NORMED), (X,)), r"cannot be exported; dense\(\) gives a module that can"),
    ],
)  # fmt: skip
def test_calls_that_cannot_be_are_refused_in_one_line(
    call: Callable[[], Any], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(lf.UserError, match=words) as caught:
        call()
    assert str(caught.value).startswith(("sparse_module: ", "set_masks: "))
    assert "\n" not in str(caught.value)
    logged = [each for each in caplog.records if each.levelno >= logging.ERROR]
    assert not logged  # PyTorch would print the traceback of what it traces


def test_one_example_will_do_without_statistics_or_with_several_places() -> None:
    assert sparse(NORMED).eval()(X[:1]).shape == (1, 3)
    assert sparse(convolutional())(torch.ones(1, 2, 8, 8)).shape == (1, 3)


def test_whole_numbers_are_not_taken_for_floats() -> None:
    """PyTorch refuses them, and so must the machine, which could multiply them."""
    told = r"^sparse_module: Sequential fails in 0, Linear\(.*\): mat1 and mat2 must have the same dtype, but got Long"
    with pytest.warns(UserWarning, match="of whole numbers"), pytest.raises(lf.UserError, match=told):
        sparse(NORMED)(X.long())


def test_what_is_left_to_pytorch_is_told_by_any_number_of_examples() -> None:
    with pytest.warns(UserWarning, match=r"no rule for embedding of a tensor of shape \(n,\) in Two \(line"):
        sparse(Two())(X, WORDS)
