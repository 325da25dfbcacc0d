"""Methods as plans for the tests' own networks and data, and what the last training of a plan ends as."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from small import decided, settings

import lthfunc as lf
from lthfunc.catalog.methods import METHODS
from lthfunc.distributed.collectives import SINGLE_RANK
from lthfunc.experiments import plan as planning
from lthfunc.experiments.iterative import Plan, Round
from lthfunc.training.evaluation import Evaluation
from lthfunc.trees.types import Dataset, Masks, Ticket


def plan_for(name: str, model: lf.Model, data: Dataset, *, steps: int, eval_every: int, **given: Any) -> Plan:
    """The plan of a method with some settings."""
    values = {"engine": "eager", "threads": 1, "steps": steps, "eval_every": eval_every, **given}
    config = decided(settings(method=name, **values), data)
    length = planning.Length(per_epoch=1, steps=steps, eval_every=eval_every)
    return planning._plan(config, planning._work(config, model, None, data, length, SINGLE_RANK), data, length)


def is_once(name: str) -> bool:
    """Whether a method prunes once, or not at all."""
    entry = METHODS[name]
    return bool({**entry.settings, **entry.defaults}.get("rounds", 5) <= 1)


class Outcome(NamedTuple):
    """ticket: the network that validation chose under the masks at the end. steps: of all trainings."""

    ticket: Ticket
    steps: int
    test: Evaluation
    last: Round

    @property
    def masks(self) -> Masks:
        return self.ticket.masks


def outcome(plan: Plan, seed: int, device: str = "cpu") -> Outcome:
    """Run a plan with one seed."""
    rounds = list(lf.iterative(plan, seed, device=device))
    last = rounds[-1]
    steps = sum(each.fit.curve[-1].step - each.fit.curve[0].step for each in rounds)
    ticket = Ticket(last.fit.best.params, last.fit.best.buffers, last.fit.state.masks)
    return Outcome(ticket, steps, last.test, last)


def drawn_apart(count: int, of: int, draw: torch.Generator) -> set[int]:
    """Different numbers, drawn until there are enough; those to be left out instead where they are fewer."""
    few, found = min(count, of - count), set[int]()
    while len(found) < few:
        found.update(torch.randint(of, (few - len(found),), generator=draw).tolist())
    return found if 2 * count <= of else set(range(of)) - found
