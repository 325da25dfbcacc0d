"""How many networks fit a GPU's memory side by side, found out before they start."""

from __future__ import annotations

import torch

from lthfunc.errors import UserError
from lthfunc.experiments.iterative import Plan
from lthfunc.training.loop import take_steps
from lthfunc.trees.model import init

#: Of the free memory; the rest is for what the allocator cannot use.
_USABLE = 0.9


def check_width(plan: Plan, width: int, device: str) -> None:
    """Take one step of one network, and raise UserError where `width` times its memory is more than is free."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    take_steps(plan.trainer, init(plan.model, 0, device), seed=0, until=1)
    each = torch.cuda.max_memory_allocated(device) - before
    refuse_too_wide(width, each, torch.cuda.mem_get_info(device)[0], device)


def refuse_too_wide(width: int, each: int, free: int, device: str) -> None:
    """Raise UserError where `width` networks of `each` bytes need more than `free` bytes, and say how many fit."""
    fit = int(_USABLE * free) // max(1, each)
    if width > fit:
        raise UserError(
            f"--jobs: {width} networks side by side need about {width * each / 1e9:.1f} GB, and {device} has "
            f"{free / 1e9:.1f} GB free; about {fit} would fit: --jobs {max(1, fit)}"
        )
