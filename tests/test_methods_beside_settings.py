"""Methods that train something else than weights, with parameters and parts of the optimiser that could be confused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import shorter, with_splits
from method_plans import outcome, plan_for
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.experiments.methods.sign_in import sign_in
from lthfunc.experiments.methods.swamp import swamp
from lthfunc.training.chain import ChainContext, Part
from lthfunc.training.parametrize import trained_name
from lthfunc.training.trainer import with_work
from lthfunc.trees.model import apply_evaluating


class Named(nn.Module):
    """Its own parameters are called as what methods add."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(0.7))
        self.scale = nn.ParameterDict({"factor": torch.tensor(1.3), "gate": torch.tensor(0.9)})
        self.one, self.two = nn.Linear(64, 8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.one(x.flatten(1)) * self.scale["factor"])
        out: Tensor = self.two(hidden * self.scale["gate"]) * self.temperature
        return out


def a_plan(data: lf.Dataset, method: str, **given: Any) -> Any:
    model = lf.from_module(Named(), warn=False)
    return plan_for(method, model, data, steps=6, eval_every=3, lr=0.1, density=0.2, **{"batch_size": 40, **given})


@pytest.mark.parametrize("method", ["sign-in", "str", "l0", "continuous-sparsification"])
def test_parameters_of_a_network_may_have_any_names(few_digits: lf.Dataset, method: str) -> None:
    plan = a_plan(few_digits, method)
    found = outcome(plan, 0).last.fit.state.params
    assert [*found] == [*lf.init(plan.model).params]
    through, start = plan.through[0], lf.init(plan.model)
    begun = through.begin(start, 0)
    own = {"temperature": torch.tensor(5.0), "scale.factor": torch.tensor(3.0), "scale.gate": torch.tensor(2.0)}
    changed = {**begun.params, **{trained_name(name): leaf for name, leaf in own.items()}}
    ticket = through.ticket(changed, begun.buffers, start)
    for name, leaf in own.items():
        assert torch.equal(ticket.params[name], leaf)
    network, x = through.trainer.work.model, few_digits.val.x[:5].float()
    expected = apply_evaluating(plan.model, ticket.params, {}, x)
    torch.testing.assert_close(apply_evaluating(network, changed, begun.buffers, x), expected)
    work = through.trainer.work
    grads = {name: torch.ones_like(leaf) for name, leaf in begun.params.items()}
    state = work.optimizer.init(begun.params, begun.buffers)
    context = ChainContext(begun.params, begun.step, buffers=begun.buffers)
    new, _ = work.optimizer.update(grads, state, begun.params, begun.step, context)
    for name in own:  # at the rate of weights, not of gates
        moved = begun.params[trained_name(name)] - new[trained_name(name)]
        torch.testing.assert_close(moved, torch.tensor(0.1))


def test_the_temperature_rises_whatever_lookahead_does(few_digits: lf.Dataset) -> None:
    (through,) = a_plan(few_digits, "continuous-sparsification", lookahead=1).through
    begun = through.begin(lf.init(a_plan(few_digits, "dense", rounds=0).model), 0)
    optimizer, grads = through.trainer.work.optimizer, {name: torch.zeros_like(p) for name, p in begun.params.items()}
    new, _ = optimizer.update(
        grads, optimizer.init(begun.params), begun.params, begun.step, ChainContext(begun.params, begun.step)
    )
    (name,) = (each for each in new if each.startswith("trained_temperature:"))
    assert float(new[name]) == pytest.approx(200 ** (1 / 6))


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("sign-in", {"lookahead": 5}, "--method: sign-in takes no --lookahead, which averages factors"),
        ("sign-in", {"ema": 0.9}, "--method: sign-in takes no --ema, which averages factors"),
        ("swamp", {"ema": 0.9}, "--method: swamp takes no --ema, which would take the place of its own average"),
        ("swamp", {"clip_norm": 1.0}, "--method: swamp takes no --clip-norm, which would scale"),
        ("swamp", {"sam": 0.05}, "--method: swamp takes no --sam, which would scale"),
        ("swamp", {"optimizer": "muon"}, "--method: swamp takes no --optimizer whose updates mix"),
        ("swamp", {"weight_decay": 0.1, "no_decay": True}, "--method: swamp takes no --no-decay"),
        (
            "swamp",
            {"particles": 9},
            r"--particles: invalid value 9 \(expected at most \d, as each takes 40 of the \d+ ",
        ),
    ],
)
def test_what_would_undo_a_method_is_refused(
    few_digits: lf.Dataset, method: str, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        a_plan(few_digits, method, **given)


def test_particles_may_take_all_examples_in_a_step(few_digits: lf.Dataset) -> None:
    data = with_splits(few_digits, lambda split: shorter(split, 60))
    (trainer,) = (each.trainer for each in a_plan(data, "swamp", rounds=1, particles=3, batch_size=20).through)
    assert trainer.batch_size == data.examples == 60
    with pytest.raises(
        UserError, match=r"^--particles: invalid value 4 \(expected at most 3, as each takes 20 of the 60"
    ):
        a_plan(data, "swamp", rounds=1, particles=4, batch_size=20)


def test_an_average_in_a_trainer_of_ones_own_is_refused(few_digits: lf.Dataset) -> None:
    plan = a_plan(few_digits, "snip")
    work = plan.trainer.work
    averaging = work._replace(optimizer=lf.chain(work.optimizer, lf.swa(3)))
    plan = plan._replace(trainer=with_work(plan.trainer, averaging, "eager"))
    with pytest.raises(UserError, match=r"^--method: sign-in takes no average \(lf\.swa\), which averages factors"):
        sign_in(plan, None)
    with pytest.raises(UserError, match=r"^--method: swamp takes no average \(lf\.swa\), which would take the place"):
        swamp(plan, 2)


@pytest.mark.parametrize(
    ("method", "parts"),
    [
        ("sign-in", {"rescaling": False}), ("swamp", {"particles": False, "swa": False}), ("ste", {}),
        ("supermask", {}), ("edge-popup", {}), ("top-kast", {"exploration": True, "holding": True}),
        ("str", {"density": True, "scale_rates": False}), ("l0", {"density": True, "scale_rates": False}),
        ("continuous-sparsification", {"density": True, "scale_rates": False, "heating": False}),
        ("group-lasso", {"shrinking": True}),
    ],
)  # fmt: skip
def test_networks_and_parts_have_the_names_that_errors_show(
    few_digits: lf.Dataset, method: str, parts: dict[str, bool]
) -> None:
    """And parts say whether they mix a leaf's entries, which survivors alone then cannot be given to."""
    plan = a_plan(few_digits, method, rounds=1)
    work = plan.trainer.work if method == "group-lasso" else plan.through[0].trainer.work
    assert work.model.name == ("Named" if method == "group-lasso" else method)
    assert {part.name: part.mixes for part in work.optimizer.parts if isinstance(part, Part)} == parts
