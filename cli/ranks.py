"""A command on several ranks (torchrun): rank 0 runs it, the others train with it and print nothing."""

from __future__ import annotations

import os
from collections.abc import Callable

import typer

from lthfunc.errors import LostRankError, UserError
from lthfunc.scheduling.ranks import help_rank_0, join_ranks, release_ranks

from .stopping import stopping

#: Commands that run a plan, one training after the other.
_COMMANDS = ("prune", "train", "resume", "branch", "transfer")


def on_ranks(command: str, run: Callable[[], int | None]) -> int | None:
    """Run a command if this is rank 0, otherwise help rank 0. Raises what the command raises, and LostRankError."""
    if command not in _COMMANDS:
        if os.environ["RANK"] != "0":
            return 2
        raise UserError(f"torchrun: runs {', '.join(_COMMANDS)} on several ranks, not {command or 'nothing'}")
    collectives = join_ranks()
    if collectives.rank > 0:
        with stopping(aloud=False) as stop:
            try:
                help_rank_0(stop)
            except LostRankError as error:
                raise LostRankError(f"rank {collectives.rank}: {error}") from error
        return stop.code if stop() else 0
    try:
        code = run()
    except LostRankError:
        raise
    except (UserError, typer.TyperException, typer.Abort):
        release_ranks()
        raise
    release_ranks()
    return code
