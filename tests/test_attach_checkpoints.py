"""Checkpoints of `lf.attach` in other people's hands: weights that are there first, optimisers that carry it, ranks."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from loops import MODEL, SEED, loop, module_of
from threads_as_ranks import Ranks
from torch import nn

import lthfunc as lf
from lthfunc.distributed.collectives import SINGLE_RANK, Collectives
from lthfunc.distributed.equal_masks import check_equal_masks
from lthfunc.errors import UserError

START, HALVED = lf.init(MODEL, SEED), lf.prune(fraction=0.5)
PLAN = [(0, HALVED), (4, HALVED), (6, HALVED)]


class Prepared(torch.optim.Optimizer):
    """Adagrad, of a third party that makes its state once and for all."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})
        for leaf in self.param_groups[0]["params"]:
            self.state[leaf] = {"step": torch.tensor(0.0), "sum": torch.full_like(leaf, 0.1)}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for leaf in self.param_groups[0]["params"]:
            state = self.state[leaf]
            state["step"] += 1
            leaf.addcdiv_(leaf.grad, state["sum"].addcmul_(leaf.grad, leaf.grad).sqrt() + 1e-10, value=-0.1)


def begun() -> tuple[nn.Module, torch.optim.Optimizer]:
    module = module_of(START)
    return module, Prepared(module.parameters())


def through_a_file(content: Any) -> Any:
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("attached_last", [False, True])
def test_a_plan_goes_on_whatever_is_restored_first(carried: bool, attached_last: bool) -> None:
    found = []
    options: Any = {"rewind": lf.rewound if carried else None, "save_with_optimizer": carried}
    for killed in (False, True):
        module, optimizer = begun()
        attached = lf.attach(module, optimizer, PLAN, **options)
        loop(module, optimizer, 0, 5)
        if killed:
            weights, moments, pruning = through_a_file([each.state_dict() for each in (module, optimizer, attached)])
            module, optimizer = begun()
            restored = {} if carried else {"state_dict": pruning}
            for step in ("load", "attach") if attached_last else ("attach", "load"):
                if step == "attach":
                    attached = lf.attach(module, optimizer, PLAN, **options, **restored)
                else:
                    module.load_state_dict(weights)
                    optimizer.load_state_dict(moments)
        loop(module, optimizer, 5, 12)
        found.append(attached.state)
        assert attached.round == 3
        assert {*optimizer.param_groups[0]} == {"lr", "params"}
    assert lf.same_bits(found[0], found[1])


def test_a_state_of_another_training_is_refused_and_an_optimizer_alone_takes_any() -> None:
    module, optimizer = begun()
    plain = optimizer.state_dict()
    attached = lf.attach(module, optimizer, PLAN, save_with_optimizer=True)
    begun()[1].load_state_dict(optimizer.state_dict())
    with pytest.raises(UserError, match="this state has no masks"):
        optimizer.load_state_dict(plain)
    for plan, words in (
        ([(0, HALVED), (5, HALVED)], r"at \[0, 4\], those of this one at \[0, 5\]"),
        (HALVED, "without"),
    ):
        attached.next_round()
        other = begun()
        with pytest.raises(UserError, match=words):
            lf.attach(*other, plan, state_dict=attached.state_dict())
        assert not any(leaf._post_accumulate_grad_hooks for leaf in other[0].parameters())
    attached.detach()
    assert "lthfunc" not in optimizer.state_dict()["param_groups"][0]


def test_ranks_with_other_masks_are_named() -> None:
    masks = lf.prune(fraction=0.5)(START).masks

    def told(other: dict[str, torch.Tensor]) -> list[str]:
        def work(rank: int, ranks: Collectives) -> str:
            try:
                check_equal_masks(other if rank == 2 else masks, ranks, "here")
            except UserError as error:
                return str(error)
            return ""

        return list(Ranks(3).run(work))

    assert told({name: mask.clone() for name, mask in masks.items()}) == [""] * 3
    flipped = {name: mask.clone() for name, mask in masks.items()}
    flipped["3.weight"].view(-1)[-1] ^= True
    assert told(flipped) == ["here: the masks of rank 2 differ from those of rank 0, which must see the same"] * 3
    check_equal_masks(masks, SINGLE_RANK, "here")

    def attach(rank: int, ranks: Collectives) -> lf.Attached:
        return lf.attach(*begun(), lf.prune(fraction=0.5, score=lf.random_scores(rank)), ranks=ranks)

    with pytest.raises(UserError, match="plan: round 1: the masks of rank 1 differ"):
        Ranks(2).run(attach)
