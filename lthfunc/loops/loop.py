"""What somebody's training loop trains."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lthfunc.distributed.collectives import SINGLE_RANK, Collectives
from lthfunc.errors import UserError


class Loop(NamedTuple):
    """What somebody's loop trains. params: those that are trained; prunable: the names of those with masks.

    optimizers: in the order in which they step. ranks: those that train the same module.
    """

    module: nn.Module
    params: dict[str, nn.Parameter]
    prunable: tuple[str, ...]
    optimizers: tuple[torch.optim.Optimizer, ...]
    schedulers: tuple[Any, ...]
    ranks: Collectives = SINGLE_RANK

    def buffers(self) -> dict[str, Tensor]:
        """The buffers of now, which a module may replace; frozen parameters are among them, as in a `Model`."""
        frozen = {name: leaf for name, leaf in self.module.named_parameters() if name not in self.params}
        return {name: leaf.detach() for name, leaf in (*self.module.named_buffers(), *frozen.items())}

    def check(self) -> None:
        """Raise UserError where the module has other parameters than those that are held to masks."""
        now = dict(self.module.named_parameters())
        for name, leaf in self.params.items():
            if now.get(name) is not leaf:
                raise UserError(f"attached: {name} is another parameter than when it was attached; attach it again")
