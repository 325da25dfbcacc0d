"""`lf.attach`: pruning in anybody's training loop, with the masks and bits of the functional path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from loops import BATCH, DATA, MODEL, SEED, STEPS, Twin, folded, loop, module_of, trained
from torch import nn

import lthfunc as lf
from lthfunc.trees.types import TrainState

START = lf.init(MODEL, SEED)
OPTIMIZERS = {"sgd": lf.sgd(0.1, momentum=0.9, weight_decay=0.01), "adam": lf.adam(0.01, weight_decay=0.01)}
LOSS, BATCHES = lf.loss_of(MODEL, START.buffers), lf.sample_batches(DATA, BATCH, 2)
FORWARD = lf.forward_of(MODEL, START.buffers)


def set_(step: int) -> Callable[[TrainState], TrainState]:
    return lambda state: lf.drop_and_grow(state, lf.random_scores(SEED, step)(state.params, state.masks), 0.3)


def rigl(step: int) -> Callable[[TrainState], TrainState]:
    return lambda state: lf.drop_and_grow(state, lf.mean_gradient(LOSS, BATCHES)(state.params, state.masks), 0.3)


SPARSE = (0, lf.prune(density=0.4, score=lf.random_scores(SEED), allocate=lf.erk()))
PLANS: dict[str, list[tuple[int, Any]]] = {
    "gradual": [(step, lf.prune(density=d, keep_moments=True)) for step, d in lf.cubic(0.2, 2, 10, 2)],
    "set": [SPARSE, *((step, set_(step)) for step in (3, 6, 9))],
    "rigl": [SPARSE, *((step, rigl(step)) for step in (3, 6, 9))],
    "one-shot": [(6, lf.compose(lf.prune(density=0.2), lf.rewind(to=START)))],
    "snip": [(0, lf.prune(density=0.2, score=lf.snip(LOSS, BATCHES)))],
    "grasp": [(0, lf.prune(density=0.2, score=lf.grasp(LOSS, BATCHES)))],
    "synflow": [(0, lf.prune_to_densities(lf.geometric(0.2, 5), score=lf.synflow(FORWARD, (6,))))],
}  # fmt: skip


@pytest.mark.parametrize("made", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("anchor_step", [0, 5])
def test_rounds_with_rewinding_have_the_bits_of_the_functional_path(made: lf.Optimizer, anchor_step: int) -> None:
    anchor = trained(made, anchor_step)(START) if anchor_step else START
    find = lf.compose(trained(made), lf.prune(fraction=0.3), lf.rewind(to=anchor))
    wanted = lf.iterate(find, rounds=3)(START)

    module = module_of(START)
    optimizer = Twin(module, made)
    with lf.attach(module, optimizer, lf.prune(fraction=0.3), rewind=lf.rewound, anchor_step=anchor_step) as attached:
        for _ in range(3):
            loop(module, optimizer, attached.step, STEPS)
            left = attached.next_round()
        assert lf.same_bits(attached.ticket(), lf.ticket(wanted))
        assert attached.step == anchor_step
        assert left == lf.count(wanted.masks)
        loop(module, optimizer, attached.step, STEPS)
        assert lf.same_bits(attached.ticket(), lf.ticket(trained(made)(wanted)))


@pytest.mark.parametrize("made", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_plan_of_steps_has_the_bits_of_the_functional_path(plan: Any, made: lf.Optimizer) -> None:
    module = module_of(START)
    optimizer = Twin(module, made)
    with lf.attach(module, optimizer, plan) as attached:
        while attached.step < STEPS or attached.round < len(plan):
            loop(module, optimizer, attached.step, attached.step + 1)
    assert lf.same_bits(attached.ticket(), lf.ticket(folded(made, START, plan)))


@pytest.mark.parametrize("by_closure", [False, True])
def test_rigl_grows_where_the_gradient_of_the_step_is_large(by_closure: bool) -> None:
    seen: dict[str, torch.Tensor] = {}

    def change(state: TrainState, gradient: dict[str, torch.Tensor]) -> TrainState:
        seen.update(gradient)
        return lf.drop_and_grow(state, {name: leaf.abs() for name, leaf in gradient.items()}, 0.3)

    module = module_of(START)
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    attached = lf.attach(module, optimizer, [SPARSE, (2, change)])
    loop(module, optimizer, 0, 1)
    before = attached.state

    def accumulated() -> float:
        optimizer.zero_grad()
        for _ in range(2):
            nn.functional.cross_entropy(module(BATCHES[0][0]), BATCHES[0][1]).backward()
        return 0.0

    if by_closure:
        optimizer.step(accumulated)
    else:
        accumulated()
        optimizer.step()
    model = lf.from_module(module, init=lf.as_built)
    once = lf.mean_gradient(lf.loss_of(model, before.buffers), [BATCHES[0]])(before.params, before.masks)
    for name, mask in before.masks.items():
        held = optimizer.state[dict(module.named_parameters())[name]]["momentum_buffer"]
        assert not held[~attached.masks[name]].any()
        assert not held[~mask].any()  # a grown weight's moments start at zero
        torch.testing.assert_close(seen[name][~mask], 2 * once[name][~mask], atol=1e-6, rtol=1e-4)
    assert lf.count(attached.masks) == lf.count(before.masks)
    assert not lf.same_bits(attached.masks, before.masks)


class Subclass(torch.optim.SGD):
    """Calls the step of its base class, whose hooks run as well."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


class Noisy(torch.optim.SGD):
    """Moves every weight, also those without a gradient."""

    def step(self, closure: Any = None) -> Any:
        with torch.no_grad():
            for leaf in self.param_groups[0]["params"]:
                leaf.add_(0.01)
        return super().step(closure)


#: States of optimisers that are no moments: they start above zero for any weight.
STRIDES = ("sum", "step_size", "exp_inf")
MAKERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "SGD, dampened, fused": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, dampening=0.5, fused=True),
    "Adam": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True, weight_decay=0.1),
    "AdamW, foreach": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1, foreach=True),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1, fused=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9, centered=True, weight_decay=0.1),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 0.1, weight_decay=0.1, initial_accumulator_value=0.1),
    "Adadelta": lambda p: torch.optim.Adadelta(p, weight_decay=0.1),
    "Adamax": lambda p: torch.optim.Adamax(p, weight_decay=0.1),
    "NAdam": lambda p: torch.optim.NAdam(p, 0.01, weight_decay=0.1, decoupled_weight_decay=True),
    "RAdam": lambda p: torch.optim.RAdam(p, 0.01, weight_decay=0.1),
    "ASGD": lambda p: torch.optim.ASGD(p, 0.01, weight_decay=0.1),
    "Rprop": lambda p: torch.optim.Rprop(p),
    "Adafactor": lambda p: torch.optim.Adafactor(p, 0.1, weight_decay=0.1),
    "Muon": lambda p: torch.optim.Muon([leaf for leaf in p if leaf.ndim == 2], 0.01),
    "LBFGS": lambda p: torch.optim.LBFGS(p, 0.1, max_iter=3),
    "a subclass": lambda p: Subclass(p, 0.1, momentum=0.9),
    "a third party's": lambda p: Noisy(p, 0.1),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_masks_hold_and_rewinding_starts_afresh_with_every_optimizer(make: Any) -> None:
    def steps(module: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
        for x, y in BATCHES * count:

            def closure(x: torch.Tensor = x, y: torch.Tensor = y) -> torch.Tensor:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(module(x), y)
                loss.backward()
                return loss

            optimizer.step(closure)  # type: ignore[arg-type]

    module = module_of(START)
    optimizer = make(list(module.parameters()))
    attached = lf.attach(module, optimizer, lf.prune(density=0.3), rewind=lf.rewound)
    steps(module, optimizer, 2)
    assert attached.step == 4
    attached.next_round()
    ticket = attached.ticket()
    steps(module, optimizer, 3)
    assert attached.step == 6
    optimizer.state_dict()  # whoever asks for moments gets zeros (test_attach_speed.py)
    for name, mask in attached.masks.items():
        leaf = dict(module.named_parameters())[name]
        assert leaf.grad is not None
        assert not leaf.detach()[~mask].any()
        assert not leaf.grad[~mask].any()
        assert not torch.equal(leaf, ticket.params[name])
        for key, value in optimizer.state[leaf].items():
            if isinstance(value, torch.Tensor) and value.shape == mask.shape and key not in STRIDES:
                assert not value[~mask].any(), key

    other = module_of(ticket.to_state())  # a new optimiser on the ticket leads to the same bits
    again = make(list(other.parameters()))
    lf.attach(other, again, lambda state: state._replace(masks=ticket.masks)).next_round()
    steps(other, again, 3)
    assert lf.same_bits(dict(other.state_dict()), dict(module.state_dict()))


def test_an_interrupted_step_of_a_subclass_does_not_confuse_the_count() -> None:
    interruptions = iter([False, True, False, False])

    class Interrupted(Subclass):
        def step(self, closure: Any = None) -> Any:
            super().step(closure)
            if next(interruptions):
                raise KeyboardInterrupt

    module = module_of(START)
    optimizer = Interrupted(module.parameters(), 0.1)
    attached = lf.attach(module, optimizer, lf.prune(fraction=0.5))
    loop(module, optimizer, 0, 1)
    with pytest.raises(KeyboardInterrupt):
        loop(module, optimizer, 1, 2)
    loop(module, optimizer, 1, 3)
    assert attached.step == 3


def test_several_optimizers_share_a_module() -> None:
    module = module_of(START)
    matrices = [leaf for leaf in module.parameters() if leaf.ndim == 2]
    muon = torch.optim.Muon(matrices, 0.01)
    adam = torch.optim.Adam([leaf for leaf in module.parameters() if leaf.ndim == 1], 0.01)
    schedules = [torch.optim.lr_scheduler.StepLR(each, 1, 0.5) for each in (muon, adam)]
    attached = lf.attach(module, [muon, adam], lf.prune(fraction=0.5), rewind=lf.rewound, scheduler=schedules)
    rates = []
    for number in range(2):
        for x, y in BATCHES:
            nn.functional.cross_entropy(module(x), y).backward()
            rates.append([each.param_groups[0]["lr"] for each in (muon, adam)])
            parts: list[Any] = [muon, adam, *schedules]
            for each in parts:
                each.step()
            module.zero_grad()
        assert attached.step == 2
        assert sorted({*attached.state.opt}) == ["exp_avg", "exp_avg_sq", "momentum_buffer", "step"]
        attached.next_round()
        assert lf.same_bits(attached.ticket(), lf.ticket(lf.rewound(attached.state, START)))
        assert (attached.state.opt, attached.round) == ((), number + 1)
    nn.functional.cross_entropy(module(x), y).backward()
    for each in parts[:2]:
        each.step()
    assert rates[2:] == rates[:2] != [rates[0]] * 2
    assert muon.param_groups[0]["lr"] == 0.01
    assert all(not leaf.detach()[~mask].any() for leaf, mask in zip(matrices, attached.masks.values(), strict=True))
