"""The ticket files of a finished run: the winning ticket, its trained weights, and the last round.

    winning_ticket.safetensors           the winning round's masks, and the weights that it was trained from
    winning_ticket_trained.safetensors   the winning round's masks, and its weights after training
    last_round.safetensors               the last round's masks, and its weights after training

The first two exist if a pruned round won. They are the first seed's; with several seeds, each seed's folder has its own
as well. All follow from the rounds' files, so they can be checked against these and written again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lthfunc.errors import DamagedError, UserError
from lthfunc.experiments.config import Config
from lthfunc.experiments.iterative import TICKET
from lthfunc.experiments.records import Record
from lthfunc.runs import safe_files
from lthfunc.runs.folder import ANCHOR, FIRST, INITIAL, MASKS, PARAMS, Run, scan_run, training_folder
from lthfunc.runs.manifests import checked_bytes, file_problem, load_checked, sum_of
from lthfunc.runs.store import state_of
from lthfunc.trees.files import header_in, ticket_bytes, ticket_of
from lthfunc.trees.ops import apply_masks
from lthfunc.trees.types import Ticket

WINNING = "winning_ticket.safetensors"
WINNING_TRAINED = "winning_ticket_trained.safetensors"
LAST = "last_round.safetensors"
#: Format 2 has only this file: the last round's masks on the weights that it was trained from.
OLD_TICKET = "ticket.safetensors"


def files_of(run: Run) -> dict[str, tuple[int, int, bool]]:
    """The ticket files of a run: names within its folder, with (seed, round, whether trained weights) of each."""
    seeds = list(range(run.config.seed, run.config.seed + run.config.replicates))
    pruned = {seed: [0] for seed in seeds}
    for item in run.records:
        if item["variant"] == TICKET and item["seed"] in pruned:
            pruned[item["seed"]].append(item["round"])
    won = run.choice.winning_round
    files: dict[str, tuple[int, int, bool]] = {}
    for seed, rounds in pruned.items():
        if not max(rounds):
            continue
        mine = {} if won not in rounds else {WINNING: (seed, won, False), WINNING_TRAINED: (seed, won, True)}
        mine[LAST] = (seed, max(rounds), True)
        if seed == seeds[0]:
            files |= mine
        if len(seeds) > 1:
            files |= {f"seed{seed}/{name}": each for name, each in mine.items()}
    return files


def write_ticket_files(folder: Path) -> None:
    """Write the ticket files that a finished run lacks and delete outdated ones. Raises DamagedError."""
    run = scan_run(folder)
    wanted = files_of(run)
    for name, which in wanted.items():
        payload = _payload(folder, run.config, name, *which)
        if payload is not None and file_problem(folder, folder / name, sum_of(payload)) is not None:
            safe_files.write(folder, folder / name, payload)
    for name in _names(run.config):
        if name not in wanted:
            safe_files.remove(folder, folder / name)
    _drop_old_tickets(folder, run.config, run.records)


def has_ticket_files(folder: Path, run: Run) -> bool:
    """Whether any of them is there. A process that ends between a run's last training and them has written none."""
    return any(safe_files.status(folder, folder / name) is not None for name in _names(run.config))


def ticket_file_problems(folder: Path, run: Run, *, sizes: bool) -> Iterator[tuple[str, str]]:
    """(name, problem) of a finished run's ticket files. sizes: only check that they are complete.

    Files of rounds that are themselves damaged are not checked.
    """
    wanted = files_of(run)
    for name, which in wanted.items():
        try:
            if sizes:
                problem = None
                if _can_be_told(folder, *which):
                    problem = "is missing" if safe_files.status(folder, folder / name) is None else None
                    if problem is None:
                        _header(folder, folder / name)
            else:
                payload = _payload(folder, run.config, name, *which)
                problem = None if payload is None else file_problem(folder, folder / name, sum_of(payload))
        except DamagedError:
            continue
        except UserError as error:
            problem = str(error).partition(": ")[2]
        if problem is not None:
            yield name, problem
    for name in _names(run.config):
        if name not in wanted and safe_files.status(folder, folder / name) is not None:
            yield name, "exists, but no round won"


def trained_weights(place: Path) -> tuple[Ticket, dict[str, Any]]:
    """(a training's masks and its weights after training, metadata). Raises DamagedError."""
    tree, about = load_checked(place, PARAMS)
    return _ticket(place, tree, about, load_checked(place, MASKS)[0]), about


def initial_weights(folder: Path, seed: int, number: int) -> tuple[Ticket, dict[str, Any]]:
    """(a pruned round's masks and the weights that it was trained from, metadata with their step).

    Raises DamagedError; UserError if the version that wrote the round did not keep them.
    """
    place = training_folder(folder, seed, number, TICKET)
    masks, about = load_checked(place, MASKS)
    name = _initial_of(folder, seed, number, about)
    if name is None:
        raise UserError(
            f"{place}: the version that wrote it did not keep the weights that round {number} was trained from"
        )
    if name == f"../{OLD_TICKET}":
        old, theirs = ticket_of(checked_bytes(place, name), place / name)
        return old, {**about, "step": theirs.get("step")}
    # A branch's settings may name another anchor than its copied rounds started from; this is the rounds' own.
    settings = about.get("config")
    first = 1 if isinstance(settings, dict) and settings.get("dense") is False else 0
    from_anchor = training_folder(folder, seed, first, TICKET) if name == f"../{ANCHOR}" else place
    tree, theirs = load_checked(from_anchor, name)
    return _ticket(place, tree, theirs, masks), {**about, "step": theirs.get("step")}


def _ticket(place: Path, tree: dict[str, Any], about: dict[str, Any], masks: dict[str, Any]) -> Ticket:
    params, buffers, kept, _, _ = state_of(place, (tree, about), masks, None)
    if not all(
        isinstance(mask, Tensor) and isinstance(params.get(name), Tensor) and params[name].shape == mask.shape
        for name, mask in kept.items()
    ):
        raise DamagedError(f"{place}: its masks and params have different leaves")
    return Ticket(apply_masks(params, kept), buffers, kept)


def _initial_of(folder: Path, seed: int, number: int, about: dict[str, Any]) -> str | None:
    """The file with the weights that a round was trained from, relative to its folder, or None."""
    if FIRST in about:
        return f"../{ANCHOR}" if about[FIRST] == f"../{ANCHOR}" else INITIAL
    settings = about.get("config")
    rewind = str(settings.get("rewind", "")) if isinstance(settings, dict) else ""
    if rewind.partition(":")[0] in ("init", "step", "epoch"):
        return f"../{ANCHOR}"
    old = folder / f"seed{seed}" / OLD_TICKET
    try:
        return f"../{OLD_TICKET}" if _header(folder, old).get("round") == number else None
    except UserError:
        return None


def _can_be_told(folder: Path, seed: int, number: int, trained: bool) -> bool:
    try:
        about = _header(folder, training_folder(folder, seed, number, TICKET) / MASKS)
    except UserError as error:
        raise DamagedError(str(error)) from error
    return trained or _initial_of(folder, seed, number, about) is not None


def _payload(folder: Path, config: Config, name: str, seed: int, number: int, trained: bool) -> bytes | None:
    """The content of a ticket file; None if the weights were not kept. Raises DamagedError."""
    if not _can_be_told(folder, seed, number, trained):
        return None
    place = training_folder(folder, seed, number, TICKET)
    ticket, about = trained_weights(place) if trained else initial_weights(folder, seed, number)
    which = "last round" if name.endswith(LAST) else "winning ticket"
    words = {"which": which, "weights": "after training" if trained else "before training"}
    about = {**words, **{key: value for key, value in about.items() if key != FIRST}}
    return ticket_bytes(ticket, about, packed=config.packed)


def _names(config: Config) -> list[str]:
    """Every name that a ticket file can have."""
    places = ["", *(f"seed{seed}/" for seed in range(config.seed, config.seed + config.replicates))]
    return [f"{place}{name}" for place in places for name in (WINNING, WINNING_TRAINED, LAST)]


def _drop_old_tickets(folder: Path, config: Config, records: Sequence[Record]) -> None:
    """Remove the files of format 2 once a later round has been trained."""
    for seed in range(config.seed, config.seed + config.replicates):
        rounds = [item["round"] for item in records if (item["seed"], item["variant"]) == (seed, TICKET)]
        if FIRST in _header(folder, training_folder(folder, seed, max(rounds, default=0), TICKET) / MASKS):
            safe_files.remove(folder, folder / f"seed{seed}" / OLD_TICKET)
            safe_files.remove(folder, folder / OLD_TICKET)


def _header(folder: Path, path: Path) -> dict[str, Any]:
    """A file's metadata, after a check that it is complete. Raises UserError."""
    try:
        with safe_files.opened(folder, path) as file:
            return header_in(file, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
