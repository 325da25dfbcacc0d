"""How many networks fit in a GPU's memory at once, determined before they start."""

from __future__ import annotations

import warnings
from contextlib import suppress

import torch

from lthfunc.errors import DivergedError, UserError
from lthfunc.experiments.iterative import Plan
from lthfunc.training.loop import take_steps
from lthfunc.trees.model import init

#: Share of the free memory to use; the rest allows for what the allocator cannot use.
_USABLE = 0.9


def width_on(plan: Plan, jobs: int, device: str, *, asked: bool) -> int:
    """How many of `jobs` networks to train at once: all if they fit, otherwise groups of equal size that do.

    asked: whether the user gave that number. If so and they don't fit, UserError is raised, with a number that would.
    """
    each, free = memory_of_one(plan, device)
    fit = max(1, int(_USABLE * free) // max(1, each))  # one was tried
    if jobs <= fit:
        return jobs
    need = f"{jobs} networks at once need about {_gigabytes(jobs * each)}, but {device} has {_gigabytes(free)} free"
    if asked:
        raise UserError(f"--jobs: {need}; about {fit} would fit: --jobs {fit}")
    groups = -(-jobs // fit)  # the fewest, as equal as possible, since every other size needs another program
    width = -(-jobs // groups)
    warnings.warn(f"{need}; they train in groups of {width} (--jobs sets another number)", stacklevel=2)
    return width


def memory_of_one(plan: Plan, device: str) -> tuple[int, int]:
    """(peak bytes of training one network, bytes free for it and others on the device).

    Raises UserError if not even one fits.
    """
    try:
        # The first step of a process also allocates what is kept (workspaces of libraries), and tries algorithms.
        _one_step(plan, device)
        plan.trainer.engine.forget()
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()  # memory cached by torch is free, although the driver counts it as used
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        _one_step(plan, device)
        torch.cuda.synchronize(device)
    except torch.OutOfMemoryError as error:
        raise too_large(device) from error
    each = torch.cuda.max_memory_allocated(device) - before
    plan.trainer.engine.forget()
    torch.cuda.empty_cache()
    return each, torch.cuda.mem_get_info(device)[0]


def too_large(device: str) -> UserError:
    """The message if a single network doesn't fit."""
    return UserError(f"--device: one network doesn't fit in the memory of {device}; try a smaller --batch-size")


def _one_step(plan: Plan, device: str) -> None:
    with suppress(DivergedError):  # the training itself will tell
        take_steps(plan.trainer, init(plan.model, 0, device), seed=0, until=1)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
