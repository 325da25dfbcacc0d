"""Experiments that start from a finished run: branches of it, and its tickets on other data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lthfunc.errors import UserError, invalid
from lthfunc.experiments.config import Config, first_round
from lthfunc.experiments.iterative import TICKET, Plan, Task
from lthfunc.experiments.plan import PreparedPlan
from lthfunc.experiments.records import Record
from lthfunc.experiments.rewinding_and_controls import RoundContext
from lthfunc.runs import safe_files
from lthfunc.runs.folder import (
    ANCHOR,
    INITIAL,
    MASKS,
    METRICS,
    PARAMS,
    PRUNE,
    Name,
    Run,
    create,
    make_training_folder,
    record_key,
    run_of,
    training_folder,
)
from lthfunc.runs.json_lines import append_lines
from lthfunc.runs.manifests import checked_bytes, load_checked, read_manifest, sum_of, write_manifest
from lthfunc.runs.store import load_anchor, state_of
from lthfunc.sparsify.rewinding import rewound
from lthfunc.trees.convert import with_new_head
from lthfunc.trees.ops import to_device
from lthfunc.trees.types import Ticket, TrainState


def branch(run: Path, records: Sequence[Record], folder: Path, number: int, prepared: PreparedPlan) -> list[Record]:
    """Make `folder` a run of these settings with the trainings of `run` up to round `number`; returns their records.

    records: of the trainings of `run`. Call `check_branch` first.
    """
    config, plan = prepared.config, prepared.plan
    create(folder, config, PRUNE, branched=(run, number), data=plan.trainer.data)
    return copy_early(run, records, number, folder, config, set())


def copy_early(
    run: Path, records: Sequence[Record], number: int, folder: Path, config: Config, there: set[Name]
) -> list[Record]:
    """Copy the trainings of a run up to round `number` that are not in `there`; returns their records.

    records: of the run's trainings.
    """
    seeds = range(config.seed, config.seed + config.replicates)
    variants = (TICKET, *config.control)
    early = [
        item for item in records
        if item["round"] <= number and item["variant"] in variants and item["seed"] in seeds
        and record_key(item) not in there
    ]  # fmt: skip
    for item in early:
        name = record_key(item)
        anchor = name[1:] == (first_round(config), TICKET)
        _copy(training_folder(run, *name), training_folder(folder, *name), anchor=anchor)
    append_lines(folder / METRICS, ({"kind": "training", **item} for item in early))
    return early


def _copy(source: Path, target: Path, *, anchor: bool) -> None:
    """Copy a training's files, each after its checksum is verified."""
    make_training_folder(target)
    sums = {}
    own = [INITIAL] if INITIAL in read_manifest(source) else []
    for name in (PARAMS, MASKS, *own, *([f"../{ANCHOR}"] if anchor else [])):
        payload = checked_bytes(source, name)
        safe_files.write(run_of(target), target / name, payload)
        sums[name] = sum_of(payload)
    write_manifest(target, sums)


def transfers(run: Path, records: Sequence[Record], plan: Plan, config: Config) -> list[Task]:
    """The run's tickets and their controls as trainings of another plan, for other data. records: of the run.

    An output layer for other classes is newly initialised and dense. Raises UserError if any other shape of a
    ticket doesn't fit the plan's network.
    """
    tasks, first = [], min((item["round"] for item in records), default=0)
    for item in records:
        if item["variant"] != TICKET:
            continue
        found = ticket_of(run, item["seed"], item["round"], config.device, first)
        start, anchor = (_fitted(state, plan, item["seed"]) for state in found)
        tasks.append(Task(item["seed"], item["round"], TICKET, start, anchor))
        if item["round"]:
            now = RoundContext(plan.model, item["seed"], item["round"], anchor)
            tasks += [
                Task(item["seed"], item["round"], name, control.make(start, now), anchor)
                for name, control in plan.controls.items()
            ]
    return tasks


def ticket_of(run: Path, seed: int, number: int, device: str, first: int = 0) -> tuple[TrainState, TrainState]:
    """(a round's masks on the run's anchor, at step 0; the anchor). first: the run's first round."""
    place = training_folder(run, seed, number, TICKET)
    anchor = state_of(place, load_anchor(run, seed, first), load_checked(place, MASKS)[0], None)
    anchor = anchor._replace(step=anchor.step * 0)
    return to_device(rewound(anchor, anchor), device), to_device(anchor, device)


def _fitted(state: TrainState, plan: Plan, seed: int) -> TrainState:
    """The state on the plan's network, which may have another output layer. Raises UserError if more differs."""
    params = dict(plan.model.training.named_parameters())
    head = plan.model.output.rpartition(".")[0]
    other = [
        name for name, leaf in params.items() if name not in state.params or state.params[name].shape != leaf.shape
    ]
    for name in other:
        if name.rpartition(".")[0] != head:
            theirs = tuple(state.params[name].shape) if name in state.params else "missing"
            raise UserError(
                f"--dataset: the ticket's {name} is {theirs}, and a network for this data set has "
                f"{tuple(params[name].shape)}"
            )
    if not other:
        return state
    moved = with_new_head(Ticket(state.params, state.buffers, state.masks), plan.model, seed)
    return to_device(state._replace(params=moved.params, buffers=moved.buffers, masks=moved.masks), state.step.device)


def check_branch(run: Path, source: Run, plan: Plan, number: int) -> None:
    """Raise UserError if the run can't be branched like this. source: what was read of it."""
    config, records = source.config, source.records
    rounds = [item["round"] for item in records if item["variant"] == TICKET]
    if rounds.count(number) < config.replicates:
        known = f"a finished round of {run} ({min(rounds)} to {max(rounds)})" if rounds else ""
        raise invalid("--from-round", number, known or "a run with a finished round")
    if plan.rounds <= number:
        raise invalid("--rounds", plan.rounds, f"at least {number + 1}, one more than the round branched from")
    _, about = load_anchor(run, config.seed, first_round(config))
    if plan.rewind.at_anchor and plan.anchor_step != about["step"]:
        raise invalid("--rewind", f"step {plan.anchor_step}", f"the step of the run's anchor, {about['step']}")
