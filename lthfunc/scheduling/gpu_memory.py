"""How many networks fit a GPU's memory side by side, found out before they start."""

from __future__ import annotations

import warnings

import torch

from lthfunc.errors import UserError
from lthfunc.experiments.iterative import Plan
from lthfunc.training.loop import take_steps
from lthfunc.trees.model import init

#: Of the free memory; the rest is for what the allocator cannot use.
_USABLE = 0.9


def width_on(plan: Plan, jobs: int, device: str, *, asked: bool) -> int:
    """How many of `jobs` networks to train side by side: all where they fit, else even groups that do.

    asked: whether the user named that number. Then UserError is raised where it doesn't fit, with how many would.
    """
    each, free = memory_of_one(plan, device)
    fit = how_many_fit(each, free)
    if jobs <= fit:
        return jobs
    need = (
        f"{jobs} networks side by side need about {_gigabytes(jobs * each)}, and {device} has {_gigabytes(free)} free"
    )
    if asked:
        raise UserError(f"--jobs: {need}; about {fit} would fit: --jobs {fit}")
    width = in_even_groups(jobs, fit)
    warnings.warn(f"{need}; they train in groups of {width} (--jobs sets another number)", stacklevel=2)
    return width


def memory_of_one(plan: Plan, device: str) -> tuple[int, int]:
    """(bytes that training one network takes at the most, bytes that are free for it and others on the device).

    Raises UserError where not even one fits.
    """
    try:
        # The first step of a process also allocates what stays (workspaces of libraries), and tries out algorithms.
        _one_step(plan, device)
        plan.trainer.engine.forget()
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()  # what torch keeps for later is free, though the driver calls it used
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


def how_many_fit(each: int, free: int) -> int:
    """Networks of `each` bytes that fit `free` bytes side by side; one at the least, which was tried."""
    return max(1, int(_USABLE * free) // max(1, each))


def in_even_groups(jobs: int, most: int) -> int:
    """The size of the fewest groups of at most `most`, as even as can be: each other size would be a program more."""
    groups = -(-jobs // most)
    return -(-jobs // groups)


def too_large(device: str) -> UserError:
    """What to say where a single network doesn't fit."""
    return UserError(f"--device: one network doesn't fit the memory of {device}; try a smaller --batch-size")


def _one_step(plan: Plan, device: str) -> None:
    take_steps(plan.trainer, init(plan.model, 0, device), seed=0, until=1)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
