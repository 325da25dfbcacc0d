"""Steps of the sparse engine of which Python computes a part: the inputs, the loss, or the optimiser's update."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lthfunc.sparse.python_losses import OutputsLoss, computes_loss
from lthfunc.sparse.workspace import Workspace, pack_moments, unpack_moments
from lthfunc.training.accumulation import parts_of_batch
from lthfunc.training.chain import ChainContext, updated
from lthfunc.training.engines.interface import Work
from lthfunc.training.user_functions import checked_augment
from lthfunc.trees.ops import clone, scaled
from lthfunc.trees.rng import counter_key, fold_in
from lthfunc.trees.types import Params, TrainState


class PythonSteps:
    """Takes them one by one. updates: whether Python computes the optimiser's update, or the machine does."""

    def __init__(
        self, work: Work, workspace: Workspace, state: TrainState, seed: int, draw: int, *, updates: bool
    ) -> None:
        self._work, self._workspace, self._state = work, workspace, state
        self._key, self._draw, self._parts = counter_key(seed, "step"), draw, parts_of_batch(work.optimizer)
        self._loss, self._augment = OutputsLoss(work), checked_augment(work.augment)
        self._machine_loss = computes_loss(work)
        self._begin, self._updates = int(state.step), updates
        self._opt = pack_moments(workspace, state.params, state.opt) if updates else ()

    def take(self, x: Tensor, y: Tensor, number: int) -> None:
        """Take the step of this number on a batch."""
        work, workspace = self._work, self._workspace
        if self._augment is not None:
            x, y = self._augment(scaled(x, work.scale), y, fold_in(self._key, torch.tensor(number)))
            x = x.contiguous()
        self._find_gradient(x, y, number)
        if self._updates:
            self._update(x, y, number)
        else:
            within = (workspace.program.update, workspace.end)
            workspace.run(x[None], y[None], 1, number, self._draw, within, self._parts)

    def opt(self) -> Any:
        """The optimiser's public state, where Python updates it."""
        return unpack_moments(self._workspace, self._state.params, self._opt)

    def _update(self, x: Tensor, y: Tensor, number: int) -> None:
        """An optimiser sees survivors alone, with as many dimensions as their dense leaves have."""
        workspace = self._workspace
        values = workspace.shaped(workspace.values)

        def gradient_at(params: Params) -> Params:
            memory = workspace.values, workspace.constants, workspace.totals
            kept = clone(memory)
            for name, value in params.items():
                values[name].copy_(value)
            self._find_gradient(x, y, number)
            found = clone(workspace.shaped(workspace.gradients))
            for place, before in zip(memory, kept, strict=True):
                place.copy_(before)
            return found

        buffers = None
        if self._work.optimizer.parts:  # whose averages follow them
            buffers = workspace.buffers(self._state.buffers, (number + 1 - self._begin) * self._parts)
        context = ChainContext(clone(values), torch.tensor(number), {}, buffers, gradient_at)
        grads = clone(workspace.shaped(workspace.gradients))
        new, self._opt = updated(self._work.optimizer, grads, self._opt, context)
        for name, value in new.items():
            values[name].copy_(value)

    def _find_gradient(self, x: Tensor, y: Tensor, number: int) -> None:
        """The mean gradient of a batch's parts, which the machine computes one after the other."""
        workspace, parts = self._workspace, self._parts
        size, total = len(x) // parts, torch.zeros(())
        for part in range(parts):
            mine = slice(part * size, (part + 1) * size)
            self._find_gradient_of_part(x[mine], y[mine], number * parts + part)
            if parts > 1:
                total = total + workspace.gradients
        if parts > 1:
            workspace.gradients.copy_(total / parts)

    def _find_gradient_of_part(self, x: Tensor, y: Tensor, number: int) -> None:
        workspace, program = self._workspace, self._workspace.program
        if self._machine_loss:
            workspace.run(x[None], y[None], 1, number, self._draw, (0, program.backward))
            return
        workspace.run(x[None], y[None], 1, number, self._draw, (0, program.forward))
        workspace.totals[0] += self._loss.hand_in(workspace, (x, y), self._state.masks, number // self._parts)
        workspace.run(x[None], y[None], 1, number, self._draw, (program.forward, program.backward))
