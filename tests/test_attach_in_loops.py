"""`lf.attach` beside what else loops do: schedules, loss scaling, accumulation, clipping, checkpoints, odd modules."""

from __future__ import annotations

import copy
import io
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from loops import DATA, MODEL, SEED, loop, module_of
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, StepLR

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.trees.types import TrainState

START = lf.init(MODEL, SEED)
HALVED, X, Y = lf.prune(fraction=0.5), DATA.train.x[:8], DATA.train.y[:8]


def begun() -> tuple[nn.Module, torch.optim.Optimizer]:
    module = module_of(START)
    return module, torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)


def backward(module: nn.Module) -> None:
    nn.functional.cross_entropy(module(X), Y).backward()


def held(module: nn.Module, masks: dict[str, torch.Tensor]) -> bool:
    leaves = dict(module.named_parameters())
    return all(not leaves[name].detach()[~mask].any() and leaves[name].detach().any() for name, mask in masks.items())


SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "step": lambda optimizer: StepLR(optimizer, 2, 0.5),
    "cosine": lambda optimizer: CosineAnnealingLR(optimizer, 9),
    "one cycle": lambda optimizer: OneCycleLR(optimizer, 0.1, total_steps=9),  # momentum as well
}


@pytest.mark.parametrize("by_itself", [False, True])
@pytest.mark.parametrize("anchor_step", [0, 2])
@pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)
def test_a_schedule_returns_to_the_step_of_the_anchor(make: Any, anchor_step: int, by_itself: bool) -> None:
    module, optimizer = begun()
    scheduler = make(optimizer)
    plan = [(6, HALVED), (6, HALVED)] if by_itself else HALVED
    attached = lf.attach(module, optimizer, plan, rewind=lf.rewound, anchor_step=anchor_step, scheduler=scheduler)
    rates: list[tuple[int, Any]] = []
    noted = optimizer.register_step_pre_hook(
        lambda *_: rates.append((attached.step, [optimizer.param_groups[0][key] for key in ("lr", "momentum")]))
    )
    for _ in range(3):
        while not rates or rates[-1][0] < 5:
            loop(module, optimizer, attached.step, attached.step + 1)
            scheduler.step()
        if not by_itself:
            attached.next_round()
        rates.append((-1, None))
        if by_itself and attached.round == 2:
            break
    noted.remove()
    rounds = [[*group] for ends, group in itertools.groupby(rates, lambda pair: pair[0] < 0) if not ends]
    assert [step for step, _ in rounds[1]] == [*range(anchor_step, 6)]
    assert all(later == rounds[0][anchor_step:] for later in rounds[1:])


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_a_scaler_skips_do_not_count(fused: bool) -> None:
    module = module_of(START)
    optimizer = torch.optim.Adam(module.parameters(), 0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)
    attached = lf.attach(module, optimizer, [(0, HALVED), (2, HALVED)])
    for broken in (False, True, False):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(X), Y) * (float("inf") if broken else 1)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert held(module, attached.masks)
    assert (attached.step, attached.round) == (2, 2)


def test_clipping_sees_masked_gradients_and_noise_is_masked_too() -> None:
    module, optimizer = begun()
    attached = lf.attach(module, optimizer, [(0, HALVED)])
    for _ in range(2):  # accumulated
        backward(module)
    leaves = dict(module.named_parameters())
    for name, mask in attached.masks.items():
        grad = leaves[name].grad
        assert grad is not None
        assert not grad[~mask].any()
        assert grad.any()
    nn.utils.clip_grad_norm_(module.parameters(), 0.01)
    for leaf in leaves.values():  # as differentially private loops do
        leaf.grad = torch.ones_like(leaf)
    optimizer.step()
    assert held(module, attached.masks)
    assert all(not optimizer.state[leaves[name]]["momentum_buffer"][~m].any() for name, m in attached.masks.items())


class Wrapper(torch.optim.Optimizer):
    """As Accelerate's: an optimiser without hooks of its own, around the one that steps."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.param_groups = optimizer, optimizer.param_groups


def test_the_steps_are_those_of_the_optimizer_within() -> None:
    module, optimizer = begun()
    attached = lf.attach(module, Wrapper(optimizer), [(2, HALVED)])
    loop(module, optimizer, 0, 3)
    assert (attached.step, attached.round) == (3, 1)
    assert held(module, attached.masks)


class Tied(nn.Module):
    """An embedding and an output layer with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.out = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.out(self.embedding(x).mean(1))
        return out


MODULES: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "tied": (Tied, torch.arange(12).view(4, 3) % 6),
    "channels last": (
        lambda: nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(32, 3)).to(memory_format=torch.channels_last),
        torch.randn(5, 4, 4, 4),
    ),
    "bf16": (lambda: nn.Sequential(nn.Linear(6, 3)).bfloat16(), torch.randn(5, 6).bfloat16()),
    "frozen": (lambda: nn.Sequential(nn.Linear(6, 5).requires_grad_(False), nn.Linear(5, 3)), torch.randn(5, 6)),
    "wrapped": (lambda: nn.DataParallel(nn.Linear(6, 3)), torch.randn(5, 6)),
}


@pytest.mark.parametrize(("make", "inputs"), MODULES.values(), ids=MODULES)
def test_odd_modules_in_several_groups(make: Any, inputs: torch.Tensor) -> None:
    module = make()
    trained = [leaf for leaf in module.parameters() if leaf.requires_grad]
    groups = [{"params": trained[:1], "lr": 0.1, "weight_decay": 0.1}, {"params": trained[1:], "momentum": 0.9}]
    optimizer = torch.optim.SGD([group for group in groups if group["params"]], 0.05)
    before = copy.deepcopy(module.state_dict())
    with lf.attach(module, optimizer, HALVED, rewind=lf.rewound) as attached:
        left = lf.count(attached.masks).total
        for _ in range(2):
            for _ in range(3):
                optimizer.zero_grad()
                module(inputs).square().mean().backward()
                optimizer.step()
            left -= round(left * 0.5)
            assert attached.next_round().kept == left
        inner = getattr(module, "module", module)
        assert held(inner, attached.masks)
        ticket = attached.ticket()
    prefix = "module." if inner is not module else ""
    for name, mask in ticket.masks.items():  # rewound to the very weights of before
        assert torch.equal(ticket.params[name], torch.where(mask, before[prefix + name], 0))
        assert dict(inner.named_parameters())[name].stride() == before[prefix + name].stride()
    model = lf.from_module(inner)
    assert lf.to_module(ticket, model) is not None


@pytest.mark.parametrize("attached_first", [False, True])
@pytest.mark.parametrize("killed_at", [1, 4, 6, 9])
def test_a_checkpoint_resumes_with_the_same_bits(killed_at: int, attached_first: bool) -> None:
    def start() -> tuple[nn.Module, torch.optim.Optimizer, Any, lf.Attached]:
        module, optimizer = begun()
        scheduler = CosineAnnealingLR(optimizer, 10)
        plan = [(6, HALVED), (6, lf.prune(fraction=0.5, keep_moments=True))]
        attached = lf.attach(module, optimizer, plan, rewind=lf.rewound, anchor_step=2, scheduler=scheduler)
        return module, optimizer, scheduler, attached

    def train(parts: Any, steps: int) -> TrainState:
        module, optimizer, scheduler, attached = parts
        for _ in range(steps):
            loop(module, optimizer, attached.step, attached.step + 1)
            scheduler.step()
        state: TrainState = attached.state
        return state

    whole = train(start(), 14)
    killed = start()
    train(killed, killed_at)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in killed], file)
    resumed = start()
    file.seek(0)
    saved = list(zip(resumed, torch.load(file, weights_only=True), strict=True))
    for part, values in [saved[3], *saved[:3]] if attached_first else saved:
        part.load_state_dict(values)
    assert resumed[3].round == killed[3].round
    assert lf.same_bits(train(resumed, 14 - killed_at), whole)


def test_nothing_is_left_behind() -> None:
    module, optimizer = begun()
    loop(module, optimizer, 0, 1)
    parts = [optimizer, *module.modules(), *module.parameters()]
    before = [set(vars(part)) for part in parts]
    with lf.attach(module, optimizer, [(0, HALVED)]) as attached:
        loop(module, optimizer, 1, 2)
        model = lf.from_module(module)  # is not hindered
        assert next(copy.deepcopy(module).parameters())._post_accumulate_grad_hooks is None
        assert lf.count(attached.masks).kept == 36
    assert model.prunable == tuple(attached.masks)
    assert [set(vars(part)) for part in parts] == before
    assert not any(leaf._post_accumulate_grad_hooks for leaf in module.parameters())
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    loop(module, optimizer, 2, 4)
    assert not held(module, attached.masks)
    assert attached.step == 1


def refused(*arguments: Any, **more: Any) -> str:
    with pytest.raises(UserError) as error:
        lf.attach(*arguments, **more)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_cannot_work_is_refused_in_one_line() -> None:
    module, optimizer = begun()
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)
    assert "optimizer does not own 0.weight" in refused(module, other, HALVED)
    assert "must be a torch.optim.Optimizer" in refused(module, lf.sgd(0.1), HALVED)
    assert "not an empty list" in refused(module, [], HALVED)
    layerwise = lf.layerwise({"conv*": 0.1})
    assert "'conv*'" in refused(module, optimizer, lf.prune(fraction=0.5, allocate=layerwise))
    assert "'9.*'" in refused(module, optimizer, HALVED, never_prune=["9.*"])
    assert "a list of (step, transformation), not 0.5" in refused(module, optimizer, 0.5)
    assert "steps of at least 0" in refused(module, optimizer, [(-1, HALVED)])
    assert "round 2 begins at step 0" in refused(module, optimizer, [(0, HALVED), (0, HALVED)])
    late = {"rewind": lf.rewound, "anchor_step": 5}
    assert "round 2 begins at step 5, but round 1 continues at 5" in refused(
        module, optimizer, [(5, HALVED)] * 2, **late
    )
    assert "round 2 begins at step 3, but round 1 continues at 3" in refused(module, optimizer, [(3, HALVED)] * 2)
    assert "needs steps" in refused(module, optimizer, lambda state, gradient: state)
    assert "expected a TrainState" in refused(module, optimizer, lambda state: 3)
    assert "another network" in refused(module, optimizer, lambda state: state._replace(params={}))
    none = lf.prune(fraction=0.5, allocate=lf.fixed_counts({"0.weight": 0, "3.weight": 0}))
    assert "no weight is left in round 1" in refused(module, optimizer, none)
    assert "begins before step 3" in refused(module, optimizer, [(0, HALVED)], rewind=lf.rewound, anchor_step=3)
    assert "no trained weight" in refused(nn.LayerNorm(3), optimizer, HALVED)
    sparse = nn.Embedding(3, 2, sparse=True)
    assert "sparse gradients" in refused(sparse, torch.optim.SGD(sparse.parameters(), 0.1), HALVED)
    assert "must have a state_dict" in refused(module, optimizer, HALVED, scheduler=0.1)
    with lf.attach(module, optimizer, [(2, HALVED)]) as attached:  # after all these, the module is as it was
        assert "attached already" in refused(module, optimizer, HALVED, never_prune=["0.*"])
        attached.next_round()
        with pytest.raises(UserError, match="no round after round 1"):
            attached.next_round()
        wrong = attached.state_dict() | {"masks": {"0.weight": torch.ones(2, 2, dtype=torch.bool)}}
        for damaged, words in ((wrong, "of another network"), ({}, "what state_dict"), (
            attached.state_dict() | {"round": 5}, "in round 5 of a plan that has 1")):  # fmt: skip
            with pytest.raises(UserError, match=words):
                attached.load_state_dict(damaged)
