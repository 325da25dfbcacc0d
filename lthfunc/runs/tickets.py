"""A trained ticket of a finished run, and what it was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from lthfunc.errors import UserError, invalid
from lthfunc.experiments.config import Config, to_mapping
from lthfunc.experiments.iterative import TICKET
from lthfunc.experiments.plan import read_data, read_model
from lthfunc.experiments.records import summarize, winning
from lthfunc.experiments.trust import check_trust
from lthfunc.runs.folder import MASKS, PARAMS, read_run, training_folder
from lthfunc.runs.manifests import load_checked
from lthfunc.runs.store import state_of
from lthfunc.trees.model import Model
from lthfunc.trees.ops import apply_masks
from lthfunc.trees.types import Dataset, Ticket


class Trained(NamedTuple):
    """A trained subnetwork. number: of its round; won: whether that is the run's winning ticket."""

    model: Model
    ticket: Ticket
    data: Dataset
    config: Config
    seed: int
    number: int
    won: bool


def trained_ticket(
    run: Path, number: int | None, seed: int | None, data_dir: str | None, *, trusted: bool = False
) -> Trained:
    """The weights at the end of a round's training; by default those of the winning ticket, or the last round.

    trusted: whether code that the run's settings name is imported.

    Raises UserError where the run has no such training, or names code and is not trusted.
    """
    return trained_tickets(run, [number], seed, data_dir, trusted=trusted)[0]


def trained_tickets(
    run: Path, numbers: Sequence[int | None], seed: int | None, data_dir: str | None, *, trusted: bool = False
) -> list[Trained]:
    """`trained_ticket` of several rounds; the data set is read once."""
    _, config, records = read_run(run)
    check_trust(to_mapping(config), run, trusted=trusted)
    mine = [item for item in records if item["variant"] == TICKET]
    if not mine:
        raise UserError(f"{run}: has no finished training yet")
    seeds = sorted({item["seed"] for item in mine})
    if seed is None:
        seed = seeds[0]
    if seed not in seeds:
        raise invalid("--seed", seed, f"one of the run's, {', '.join(map(str, seeds))}")
    rounds = sorted(item["round"] for item in mine if item["seed"] == seed)
    best = winning(summarize(records))
    won = best.round if best is not None else None
    usual = best.round if best is not None and best.round in rounds else rounds[-1]
    chosen = [usual if number is None else number for number in numbers]
    for number in chosen:
        if number not in rounds:
            raise invalid("--round", number, f"a finished round of {run} ({rounds[0]} to {rounds[-1]})")
    config = replace(config, data_dir=data_dir or config.data_dir)
    data = read_data(config)
    model = read_model(config, data)
    tickets = [_ticket(training_folder(run, seed, number, TICKET), model) for number in chosen]
    return [
        Trained(model, ticket, data, config, seed, number, number == won)
        for number, ticket in zip(chosen, tickets, strict=True)
    ]


def _ticket(place: Path, model: Model) -> Ticket:
    state = state_of(place, load_checked(place, PARAMS), load_checked(place, MASKS)[0], model)
    return Ticket(apply_masks(state.params, state.masks), state.buffers, state.masks)
