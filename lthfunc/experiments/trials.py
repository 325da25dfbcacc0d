"""Trials of what can fail in pruning, on the network before anything is trained."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence

from lthfunc.errors import failing_as, invalid
from lthfunc.experiments.functions import ScoreContext, growth_of
from lthfunc.experiments.iterative import Plan
from lthfunc.experiments.methods.during_training import growth_scores
from lthfunc.experiments.rewinding_and_controls import RoundContext
from lthfunc.sparsify.scores import Score, checked_score, magnitude
from lthfunc.sparsify.transforms import prune
from lthfunc.tracebacks import first_line, user_location
from lthfunc.training.mask_updates import UpdateContext
from lthfunc.training.schedules import Schedule
from lthfunc.trees.global_rng import seeded_generators
from lthfunc.trees.model import Model, init
from lthfunc.trees.prunable import weights_by_inputs


def check_pruning(plan: Plan) -> None:
    """Raise UserError if the first pruning, or all of them together, can't be done."""
    dense = init(plan.model, 0)
    plan.pruning(1, magnitude)(dense)
    last = (1 - plan.rate) ** plan.rounds if plan.densities is None else plan.densities[-1]
    plan._replace(densities=(last,)).pruning(1, magnitude)(dense)


def check_score(name: str, scoring: Callable[[ScoreContext], Score], now: ScoreContext) -> None:
    """Score the network once, on a small batch. Raises UserError if that fails."""
    now = now._replace(batch_size=min(now.batch_size, 2), batch_count=1)

    def message(error: Exception) -> str:
        return f"--score: {name} cannot be computed for {now.model.name}{user_location(error)}: {first_line(error)}"

    with failing_as(message), seeded_generators(0, now.trained.step.device):
        checked_score(scoring(now))(now.trained.params, now.trained.masks)


def check_growth(name: str, plan: Plan, rates: Schedule) -> None:
    """Score the half-pruned network once with what a user's method grows by. rates: of a training's steps.

    Raises UserError if that fails.
    """
    device = plan.trainer.data.train.y.device
    trainer, state = plan.trainer._replace(batch_size=min(plan.trainer.batch_size, 2)), init(plan.model, 0, device)
    with seeded_generators(0, device):
        growth_scores(trainer, growth_of(name, rates), prune(density=0.5)(state), UpdateContext(0, 1, last=False))


def check_start(plan: Plan) -> None:
    """Raise UserError if a user's rewinding fails on the untrained network."""
    dense = init(plan.model, 0, plan.trainer.data.train.y.device)
    plan.rewind.make(prune(density=0.5)(dense), RoundContext(plan.model, 0, 1, dense))


def check_orientation(structure: str, model: Model, exempt: Sequence[str]) -> None:
    """Raise UserError if a structure treats a weight's rows as outputs, but they are inputs."""
    turned = weights_by_inputs(model.evaluating)
    for name in model.prunable:
        if name in turned and not any(fnmatch.fnmatchcase(name, pattern) for pattern in exempt):
            raise invalid(
                "--structure", structure,
                f"unstructured with {name}, which is stored as (inputs, outputs); --exempt {name!r} leaves it out",
            )  # fmt: skip
