"""A state that an optimiser's own state_dict carries, through checkpoints that have no other place for it."""

from __future__ import annotations

from typing import Any

import torch

from lthfunc.errors import UserError

#: The option of the first parameter group that holds it. PyTorch's optimisers save and load options they don't know.
_OPTION = "lthfunc"


def keep_in_optimizer(optimizer: torch.optim.Optimizer, holder: Any) -> list[Any]:
    """Save and load a holder's state with an optimiser's. Returns the handles of the hooks that do so.

    holder: has a state_dict and a load_state_dict. Once hooked, the optimiser refuses a state that holds none of it.
    """

    def save(_: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
        state_dict["param_groups"][0][_OPTION] = holder.state_dict()

    def load(_: torch.optim.Optimizer) -> None:
        saved = taken_from_optimizer(optimizer)
        if saved is None:
            raise UserError("optimizer: this state has no masks; it was saved by a training without them")
        holder.load_state_dict(saved)

    return [optimizer.register_state_dict_post_hook(save), optimizer.register_load_state_dict_post_hook(load)]


def taken_from_optimizer(optimizer: torch.optim.Optimizer) -> Any:
    """What an optimiser has loaded of a holder, which it then no longer has; None if that is nothing."""
    return optimizer.param_groups[0].pop(_OPTION, None)
