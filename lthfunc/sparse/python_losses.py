"""Losses that are Python's, on the outputs that the machine hands out: what they may see here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.func import grad_and_value

from lthfunc.errors import UserError
from lthfunc.sparse.workspace import Workspace
from lthfunc.training.engines.interface import Work
from lthfunc.training.language import next_token
from lthfunc.training.loss_context import LossContext, features_of, takes_context, with_its_context
from lthfunc.training.losses import cross_entropy
from lthfunc.trees.augmenting import changes_targets
from lthfunc.trees.model import apply_training, init
from lthfunc.trees.ops import clone, scaled
from lthfunc.trees.outputs import outputs_of
from lthfunc.trees.types import Batch, Masks, Split


def computes_loss(work: Work) -> bool:
    """Whether the machine computes the loss of a step: cross entropy, of examples or of tokens, unless an augmentation
    mixes the targets."""
    return work.loss in (cross_entropy, next_token) and not changes_targets(work.augment)


class _NoParams(Mapping[str, Tensor]):
    """Stands where params would: a loss that looks at them is told why there are none."""

    def __getitem__(self, name: str) -> NoReturn:
        raise _refused("context.params, by which it may be differentiated,")

    def __iter__(self) -> Iterator[str]:
        raise _refused("context.params, by which it may be differentiated,")

    __len__ = __iter__  # type: ignore[assignment]


_NO_PARAMS: Any = _NoParams()


def _refused(what: str) -> UserError:
    return UserError(f"engine: sparse gives a loss no {what} but outputs; use eager or compile")


def check_features(work: Work) -> None:
    """Raise UserError for a loss that asks for features, which the machine keeps to itself."""
    if asked := features_of(work.loss):
        raise _refused(f"features of layers ({', '.join(asked)})")


class OutputsLoss:
    """The loss of a step or an evaluation, with all of its context but features and params."""

    def __init__(self, work: Work) -> None:
        self._given = with_its_context(work.loss)
        self._scale = work.scale
        self._changed = work.augment is not None

    def __call__(self, outputs: Any, targets: Tensor, x: Tensor) -> Tensor:
        """The loss of an evaluation. x: inputs as they are stored."""
        return self._given(outputs, targets, lambda: LossContext(scaled(x, self._scale), _NO_PARAMS, False))

    def gradient(
        self,
        outputs: list[Tensor],
        rebuilt: Callable[[Sequence[Tensor]], Any],
        targets: Tensor,
        x: Tensor,
        masks: Masks,
        step: Tensor,
    ) -> tuple[list[Tensor], Tensor]:
        """(the gradient by each output, the loss) of a step. rebuilt: what the network gives, from its outputs. x:
        inputs as the machine takes them."""

        def context() -> LossContext:
            inputs = x if self._changed else scaled(x, self._scale)  # augmented ones come scaled
            return LossContext(inputs, _NO_PARAMS, True, masks, step)

        def of(tensors: list[Tensor]) -> Tensor:
            return self._given(rebuilt(tensors), targets, context)

        found: tuple[list[Tensor], Tensor] = grad_and_value(of)(outputs)
        return found

    def hand_in(self, workspace: Workspace, batch: Batch, masks: Masks, step: int) -> Tensor:
        """Hand a program the gradient by the outputs that it has handed out. Returns the loss. batch: x and targets, as
        of `gradient`."""
        x, y = batch
        outputs = workspace.handed_out(len(x))
        gradients, loss = self.gradient(clone(outputs), workspace.program.rebuilt, y, x, masks, torch.tensor(step))
        for place, gradient in zip(outputs, gradients, strict=True):
            place.copy_(gradient)
        return loss


def why_not_loss(work: Work, split: Split) -> str | None:
    """Why the machine cannot train by this loss, in one line, tried on two examples of a split; None where it can."""
    if not takes_context(work.loss):
        return None
    state = init(work.model)
    x, y = (part[:2].cpu() for part in split)
    try:
        check_features(work)
        with torch.no_grad():
            given, _ = apply_training(work.model, state.params, state.buffers, scaled(x, work.scale))
            outputs, loss = outputs_of(given), OutputsLoss(work._replace(augment=None))
            loss.gradient(outputs.tensors, outputs.rebuilt, y, x, state.masks, state.step)
    except UserError as error:
        return str(error)
    return None
