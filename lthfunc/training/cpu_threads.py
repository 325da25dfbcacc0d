"""CPU threads: a setting of a run, since sums depend on their number."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lthfunc.errors import invalid

#: Threads that any machine accepts.
_ANYWHERE = 128


def most_threads() -> int:
    """The most threads that a training may ask for on this machine.

    More than four per core gain nothing, and thousands end the process. A run keeps its number when it is resumed
    elsewhere, so a small machine accepts what a larger one began with.
    """
    return max(_ANYWHERE, 4 * (os.cpu_count() or 1))


def check_threads(number: int | None, option: str = "threads") -> None:
    """Raise UserError for more threads, or parallel trainings (option "jobs"), than this machine can have."""
    if number is not None and not 1 <= number <= most_threads():
        raise invalid(option, number, f"a whole number from 1 to {most_threads()} on this machine")


@contextmanager
def using_threads(number: int | None) -> Iterator[None]:
    """Use this number of threads in the block, and restore it afterwards (None: change nothing). Raises UserError."""
    check_threads(number)
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
