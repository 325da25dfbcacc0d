"""CPU threads: a setting of a run, since sums depend on their number."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lthfunc.errors import invalid

#: Threads that any machine takes.
_ANYWHERE = 128


def most_threads() -> int:
    """Threads that a training can ask for here: more than four a core gain nothing, and thousands end the process.

    A run keeps its number wherever it is gone on with, so a small machine takes what a larger one began with.
    """
    return max(_ANYWHERE, 4 * (os.cpu_count() or 1))


def check_jobs(number: int | None) -> None:
    """Raise UserError for more trainings side by side than this machine's processor can have threads for."""
    if number is not None and number > most_threads():
        raise invalid("--jobs", number, f"a whole number from 1 to {most_threads()} on this machine")


def check_threads(number: int | None, option: str = "--threads") -> None:
    """Raise UserError for more threads than this machine can have."""
    if number is not None and not 1 <= number <= most_threads():
        raise invalid(option, number, f"a whole number from 1 to {most_threads()} on this machine")


@contextmanager
def using_threads(number: int | None) -> Iterator[None]:
    """As many threads as `number` says (None: as many as there are), and as before afterwards. Raises UserError."""
    check_threads(number)
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
