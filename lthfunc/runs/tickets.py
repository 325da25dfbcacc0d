"""A ticket of a run, as commands select one: which round, whether trained, and what it was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from lthfunc.errors import UserError, invalid
from lthfunc.experiments.config import Config, to_mapping
from lthfunc.experiments.iterative import TICKET
from lthfunc.experiments.plan import read_data, read_model
from lthfunc.experiments.trust import check_trust, remember_code
from lthfunc.runs.folder import training_folder, whole_run
from lthfunc.runs.start_folder import located
from lthfunc.runs.store import check_fits
from lthfunc.runs.ticket_files import initial_weights, trained_weights
from lthfunc.trees.model import Model
from lthfunc.trees.types import Dataset, Ticket

#: Rounds that can be named by a word instead of their number.
WINNING_ROUND, LAST_ROUND = "winning", "last"


class Found(NamedTuple):
    """A subnetwork of a run. number, last: its round, and the last finished one; seed: its replicate's.

    won: the round of the winning ticket, None if no pruned round won. trained: whether `ticket` has the weights
    after training, or those that it was trained from. one_seed: whether the run has no other seed.
    """

    model: Model
    ticket: Ticket
    data: Dataset
    config: Config
    seed: int
    number: int
    last: int
    won: int | None
    trained: bool = True
    one_seed: bool = True

    @property
    def words(self) -> str:
        """Its description: "round 3 of 5, the winning ticket, its trained weights"."""
        parts = [f"round {self.number} of {self.last}" + ("" if self.one_seed else f" of seed {self.seed}")]
        if self.number == 0:
            parts.append("the dense network")
        elif self.number == self.won:
            parts.append("the winning ticket")
        elif self.number == self.last:
            parts.append("the last" + ("; no round won" if self.won is None else ""))
        return ", ".join([*parts, "its trained weights" if self.trained else "its weights before training"])


def tickets_of_run(
    run: Path,
    numbers: Sequence[int | str | None],
    seed: int | None,
    data_dir: str | None,
    *,
    trusted: bool = False,
    trained: bool = True,
    seed_option: str = "--seed",
) -> list[Found]:
    """The subnetworks of rounds, by number, "winning" or "last"; None is the winning ticket, or else the last round.

    The data set is read once. trained: with their weights after training, or with those that they were trained from.
    trusted: whether code named by the run's settings may be imported. seed_option: what the seed is called in messages.

    Raises UserError if the run has no such training, or names code and is not trusted.
    """
    found_run = whole_run(run)
    config, records = located(replace(found_run.config, weights=None), run), found_run.records  # rounds have weights
    check_trust(to_mapping(config), run, trusted=trusted, typed=("data_dir",) if data_dir is not None else ())
    mine = [item for item in records if item["variant"] == TICKET]
    if not mine:
        raise UserError(f"{run}: has no finished training yet")
    seeds = sorted({item["seed"] for item in mine})
    if seed is None:
        seed = seeds[0]
    if seed not in seeds:
        raise invalid(seed_option, seed, f"one of the run's seeds: {', '.join(map(str, seeds))}")
    rounds = sorted(item["round"] for item in mine if item["seed"] == seed)
    won = found_run.choice.winning_round
    chosen = [_round(number, rounds, won, run) for number in numbers]
    if not trained and 0 in chosen:
        raise invalid("--initial", "given", "a pruned round; round 0 is the dense network")
    config = replace(config, data_dir=data_dir or config.data_dir)
    data = read_data(config)
    model = read_model(config, data)
    remember_code(to_mapping(config))
    found = []
    for number in chosen:
        place = training_folder(run, seed, number, TICKET)
        ticket, _ = trained_weights(place) if trained else initial_weights(run, seed, number)
        check_fits(place, ticket, model)
        found.append(Found(model, ticket, data, config, seed, number, rounds[-1], won, trained, len(seeds) == 1))
    return found


def _round(asked: int | str | None, rounds: list[int], won: int | None, run: Path) -> int:
    """The number of the round that was asked for."""
    if asked == WINNING_ROUND and won not in rounds:
        raise invalid("--round", asked, f"last or a round's number: no pruned round of {run} won")
    if asked is None or asked == WINNING_ROUND:
        return won if won is not None and won in rounds else rounds[-1]
    if asked == LAST_ROUND:
        return rounds[-1]
    if asked not in rounds:
        raise invalid("--round", asked, f"a finished round of {run} ({rounds[0]} to {rounds[-1]}), winning or last")
    return int(asked)
