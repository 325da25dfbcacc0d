"""Losses that see more than outputs and targets: a third parameter, `context`, and what they ask for in it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from lthfunc.arguments import public
from lthfunc.errors import ArgumentError, UserError
from lthfunc.tracebacks import function_name
from lthfunc.training.losses import Loss
from lthfunc.training.teachers import Teacher, TeacherOutputs, teacher_of
from lthfunc.training.user_functions import checked_loss
from lthfunc.trees.features import capturing, with_features
from lthfunc.trees.model import Model
from lthfunc.trees.types import Batch, Masks, Params

T = TypeVar("T")


class LossContext(NamedTuple):
    """What a loss may see besides outputs and targets, where its third parameter is called `context`.

    inputs: of the batch (n, ...), scaled and augmented, as the network gets them. params: the network's, by which the
    loss may be differentiated, as a penalty is. training: whether the network ran in training mode. masks: bool; step:
    int64 scalar, the number of steps taken before; both are None where no step is taken, in evaluations and scores.
    features: what the layers that the loss asks for returned, by name. teacher: outputs and features of its teacher.

    >>> def sparing(outputs, targets, context):
    ...     size = sum(leaf.abs().sum() for leaf in context.params.values())
    ...     return lf.cross_entropy(outputs, targets) + 1e-5 * size
    >>> model = lf.from_module(nn.Linear(4, 2))
    >>> step = lf.make_train_step(model, sparing, lf.sgd(0.1))
    >>> state, _ = step(lf.with_optimizer(lf.init(model), lf.sgd(0.1)), (torch.ones(3, 4), torch.tensor([0, 1, 1])))
    >>> int(state.step)
    1
    """

    inputs: Tensor
    params: Params = {}  # noqa: RUF012  # no field is ever changed
    training: bool = True
    masks: Masks | None = None
    step: Tensor | None = None
    features: Mapping[str, Any] = {}
    teacher: TeacherOutputs | None = None


@dataclass(frozen=True, eq=False)
class ContextLoss:
    """A loss of outputs, targets and a context, and what it asks for.

    features, of_teacher: the layers of the network, and of the teacher, whose outputs it takes. teacher: its own;
    without one it takes that of the loss around it. within: the losses that it calls.
    """

    function: Callable[[Any, Any, LossContext], Tensor]
    features: tuple[str, ...] = ()
    of_teacher: tuple[str, ...] = ()
    teacher: Teacher | None = None
    within: tuple[ContextLoss, ...] = ()

    @property
    def teachers(self) -> tuple[Teacher, ...]:
        """All that are called for this loss."""
        mine = () if self.teacher is None else (self.teacher,)
        return (*mine, *(each for loss in self.within for each in loss.teachers))

    def __call__(self, outputs: Any, targets: Any, context: LossContext | None = None) -> Tensor:
        """The loss, a scalar. Raises ArgumentError where it needs a context and has none."""
        if context is None and (self.teacher is not None or self.features or self.of_teacher):
            raise ArgumentError("loss: context must be an lf.LossContext(inputs, …) for this loss, not None")
        context = LossContext(torch.empty(0)) if context is None else context
        if self.teacher is not None:
            context = context._replace(teacher=self.teacher(context.inputs))
        return self.function(outputs, targets, context)


def takes_context(loss: Loss) -> bool:
    """Whether a loss has a parameter called `context`. Raises UserError for one that needs another third argument."""
    if isinstance(loss, ContextLoss):
        return True
    try:
        found = inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss).parameters
    except (TypeError, ValueError):  # builtins may have none
        return False
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [each.name for each in found.values() if each.kind not in kinds and each.default is each.empty]
    if len(needed) > 2 and needed[2:] != ["context"]:
        raise UserError(
            f"loss: {function_name(loss)!r} needs an argument {needed[2]!r} (expected outputs, targets and, where it "
            "sees more, context)"
        )
    return "context" in found


def with_its_context(loss: Loss) -> Callable[[Any, Any, Callable[[], LossContext]], Tensor]:
    """A checked loss as a function of outputs, targets, and what makes a context, called where the loss takes one."""
    checked = checked_loss("loss", loss)
    if not takes_context(loss):
        return lambda outputs, targets, context: checked(outputs, targets)
    return lambda outputs, targets, context: checked(outputs, targets, context=context())


def features_of(loss: Loss) -> tuple[str, ...]:
    """The layers whose outputs a loss asks for."""
    return loss.features if isinstance(loss, ContextLoss) else ()


class NetworkLoss:
    """A loss together with the network whose outputs, and perhaps features, it takes."""

    def __init__(self, model: Model, loss: Loss) -> None:
        self._asked, self._takes = features_of(loss), takes_context(loss)
        self._model, self._loss = with_features(model, self._asked, "loss: features"), with_its_context(loss)

    def __call__(
        self,
        call: Callable[[Model, Tensor], tuple[Any, T]],
        batch: Batch,
        params: Params,
        *,
        training: bool,
        masks: Masks | None = None,
        step: Tensor | None = None,
    ) -> tuple[Tensor, Any, T]:
        """(the loss, the outputs, what else the call gives).

        call: runs the network on inputs, into which it may write, and gives its outputs and something else.
        """
        inputs, targets = batch
        seen = inputs if self._model.pure or not self._takes else inputs.clone()
        with capturing(self._asked) as features:
            outputs, rest = call(self._model, inputs)

        def context() -> LossContext:
            kept = None if masks is None else {name: mask.bool() for name, mask in masks.items()}  # in a loop floats
            return LossContext(seen, params, training, kept, step, features)

        return self._loss(outputs, targets, context), outputs, rest


@public
def with_context(
    loss: Loss, *, features: Sequence[str] = (), teacher: nn.Module | None = None, of_teacher: Sequence[str] = ()
) -> Loss:
    """A loss that is given what it asks for, as parts of its `context`.

    loss: (outputs, targets, context) -> scalar, or another loss that asks for something. features: the layers of the
    network whose outputs it takes, as ``context.features``, by the names of `nn.Module.named_modules`; of a layer that
    is called several times the last output. teacher: a trained network, which is called in evaluation mode on the same
    inputs, without a gradient; its outputs are ``context.teacher.outputs``. It is copied, and must be on the device of
    the training (`to_module` makes one of a ticket). of_teacher: the teacher's layers whose outputs it takes, as
    ``context.teacher.features``. Returns a loss.

    >>> def sparse_code(outputs, targets, context):
    ...     return lf.cross_entropy(outputs, targets) + 1e-3 * context.features["1"].abs().mean()
    >>> loss = lf.with_context(sparse_code, features=["1"])
    >>> model = lf.from_module(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    >>> lf.loss_of(model, {}, loss)(lf.init(model).params, (torch.ones(3, 4), torch.tensor([0, 1, 1]))).shape
    torch.Size([])
    """
    given = with_its_context(loss)

    def with_all(outputs: Any, targets: Any, context: LossContext) -> Tensor:
        return given(outputs, targets, lambda: context)

    return around(with_all, [loss], features, of_teacher, teacher)


def around(
    function: Callable[[Any, Any, LossContext], Tensor],
    losses: Iterable[Loss],
    features: Sequence[str] = (),
    of_teacher: Sequence[str] = (),
    teacher: nn.Module | None = None,
) -> ContextLoss:
    """A loss that calls others and asks for what they ask for, and for more; see `with_context`."""
    inner = [loss for loss in losses if isinstance(loss, ContextLoss)]
    ours = dict.fromkeys([*(name for loss in inner for name in loss.features), *features])
    asked = (name for loss in inner if loss.teacher is None for name in loss.of_teacher)
    theirs = tuple(dict.fromkeys([*asked, *of_teacher]))
    taught_by = None if teacher is None else teacher_of(teacher, theirs)
    return ContextLoss(function, tuple(ours), theirs, taught_by, tuple(inner))
