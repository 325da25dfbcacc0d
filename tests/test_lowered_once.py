"""Networks that are lowered once: their programs for other survivors, beside those that are lowered anew."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from verified_networks import SHAPE, Attended, Mixed, Plain

import lthfunc as lf
from lthfunc.sparse import evaluator
from lthfunc.sparse.capture import captured
from lthfunc.sparse.kernels import build
from lthfunc.sparse.lowerings import dense
from lthfunc.sparse.program import Epilogue, Lowered, Stored, lower
from lthfunc.sparse.thread_tuner import ThreadTuners
from lthfunc.training.engines.interface import Work
from lthfunc.training.losses import cross_entropy
from lthfunc.training.optimizers import AdamNumbers
from lthfunc.trees.types import Split

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))

ADAM = AdamNumbers((0.9, 0.999), 1e-8, 0.1, False, lf.is_matrix)


class Others(nn.Sequential):
    """Lists of phases, of groups and of images that are made: their lengths depend on which weights survive."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(2, 6, 3, stride=2, padding=1, groups=2), nn.ConvTranspose2d(6, 4, 3, stride=2), nn.Flatten(),
            nn.Linear(4 * 81, 3),
        )  # fmt: skip


def lowered(module: nn.Module, masks: dict[str, Tensor], share: float = math.inf) -> Lowered:
    tokens = isinstance(module, Attended)
    stored = Stored((7,), torch.int64) if tokens else Stored(SHAPE, torch.float32)
    model = lf.from_module(module, tokens=tokens)
    params, buffers, *_ = lf.init(model, seed=0)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("GRADIENTS_FROM", "PRODUCTS_FROM", "CONVOLUTIONS_FROM"):
            patch.setattr(dense, name, share)
        return lower(
            captured(model, stored.shape, training=True), params, buffers, masks, batch=20, stored=stored,
            epilogue=Epilogue(update=(ADAM,)),
        )  # fmt: skip


def shuffled(masks: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        name: mask.flatten()[torch.randperm(mask.numel(), generator=draw)].view(mask.shape)
        for name, mask in masks.items()
    }


@pytest.mark.parametrize("share", [math.inf, 0.5])
@pytest.mark.parametrize("kind", [Plain, Mixed, Attended, Others])
def test_a_program_of_other_survivors_is_the_one_that_is_lowered_anew(kind: type[nn.Module], share: float) -> None:
    module = kind()
    whole = {name: leaf.detach() != 2 for name, leaf in module.named_parameters() if leaf.ndim > 1}
    first = {name: torch.arange(mask.numel()).view(mask.shape) % 8 != 0 for name, mask in whole.items()}
    once, seen = lowered(module, first, share), set()
    for seed in (1, 2):
        masks = shuffled(first, seed)
        anew = lowered(module, masks, share).program
        assert once.move_to(anew.positions)
        code, expected = once.program.code, anew.code
        assert lf.same_bits(
            (code.rows, code.lists, code.constants), (expected.rows, expected.lists, expected.constants)
        )
        assert (code.vectors, code.local, code.values) == (expected.vectors, expected.local, expected.values)
        given: dict[str, Any] = {"code": code, "positions": {}, "whole_layers": anew.whole_layers}
        assert once.program._replace(**given) == anew._replace(**given)
        assert lf.same_bits(once.program.positions, anew.positions)
        seen.add(tuple(code.lists.tolist()))
    assert len(seen) == 2, "lists follow the survivors"


def test_where_more_weights_survive_it_is_lowered_anew() -> None:
    """Whether a layer is computed densely depends on their number."""
    module = Plain()
    masks = {name: torch.rand(leaf.shape) < 0.5 for name, leaf in module.named_parameters() if leaf.ndim > 1}
    once = lowered(module, masks)
    before = once.program
    more = before.positions | {"9.weight": torch.arange(16 * 40)}
    assert not once.move_to(more)
    assert once.program is before


def _changed(params: dict[str, Tensor], masks: dict[str, Tensor], missing: int) -> dict[str, Tensor]:
    """Weights under masks; in each leaf `missing` survivors are zero, as those are that have just grown."""
    found = lf.apply_masks(params, masks)
    for name, mask in masks.items():
        found[name].view(-1)[mask.flatten().nonzero().flatten()[:missing]] = 0
    return found


@pytest.mark.parametrize("missing", [0, 1, 30])
def test_evaluations_of_as_many_survivors_take_the_same_program(missing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = lf.from_module(Plain())
    work, draw = Work(model, cross_entropy, lf.sgd(0.1), None, None, "fp32"), torch.Generator().manual_seed(0)
    split = Split(torch.randn(40, *SHAPE, generator=draw), torch.randint(3, (40,), generator=draw))
    params = lf.init(model, seed=0).params
    first = {
        name: torch.arange(leaf.numel()).view(leaf.shape) % 8 != 0 for name, leaf in params.items() if leaf.ndim > 1
    }
    made, tuners = list[Lowered](), ThreadTuners()

    def noted(*arguments: Any, **given: Any) -> Lowered:
        made.append(lower(*arguments, **given))
        return made[-1]

    monkeypatch.setattr(evaluator, "lower", noted)
    kept = evaluator.Evaluator(work, tuners)
    for number, masks in enumerate([first, shuffled(first, 1), shuffled(first, 2)]):
        network = lf.init(model, seed=0)._replace(params=_changed(params, masks, missing if number else 0))
        assert kept.quality(network, split) == evaluator.Evaluator(work, tuners).quality(network, split)
    small = min(int(mask.sum()) for mask in first.values())
    anew = 3 + (1 if missing <= 0.02 * small else 2)
    assert len(made) == anew, "where few are missing, the first program moves; else the next one does"
