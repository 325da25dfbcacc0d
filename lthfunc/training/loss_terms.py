"""Losses made of others: weighted sums, and losses of one of several outputs."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lthfunc.arguments import check_argument, public
from lthfunc.errors import ArgumentError, UserError
from lthfunc.training.evaluation import wrapped
from lthfunc.training.loss_context import LossContext, around, takes_context, with_its_context
from lthfunc.training.losses import Loss, Metric
from lthfunc.trees.outputs import part_of


@public
def sum_of_losses(*terms: tuple[float, Loss]) -> Loss:
    """The sum of several losses, each times its weight.

    terms: pairs (weight, loss). A loss may take a context; the sum asks for what its losses ask for. Returns a loss.
    Raises ArgumentError for a term that is no such pair.

    >>> loss = lf.sum_of_losses((0.5, lf.mean_squared_error), (2.0, lf.mean_absolute_error))
    >>> loss(torch.tensor([[3.0]]), torch.tensor([[1.0]]))
    tensor(6.)
    """
    if not terms:
        raise ArgumentError("sum_of_losses: terms must be at least one pair (weight, loss)")
    for term in terms:
        if not isinstance(term, tuple) or len(term) != 2:
            raise ArgumentError("sum_of_losses: terms must be pairs (weight, loss), such as (0.3, lf.cross_entropy)")
        check_argument("sum_of_losses", "weight", term[0], "float")
        check_argument("sum_of_losses", "loss", term[1], "Loss")
    parts = [(weight, with_its_context(loss)) for weight, loss in terms]

    def of_all(outputs: Any, targets: Any, context: LossContext) -> Tensor:
        values = (weight * part(outputs, targets, lambda: context) for weight, part in parts)
        total: Tensor = functools.reduce(operator.add, values)
        return total

    return around(of_all, [loss for _, loss in terms])


@public
def on_output(name: str | int, loss: Loss, *, training_only: bool = False) -> Loss:
    """A loss, or a metric, of one of several outputs of a network, such as an auxiliary head's.

    name: of an entry of a dictionary, a named tuple or a class of outputs, or the number of one in a tuple. loss:
    (outputs, targets) -> scalar, for this output. training_only: whether the network has it in training mode alone, as
    auxiliary heads often are; in evaluations the loss is then 0. Returns a function like `loss`. Raises UserError, when
    it is called, where there is no such output.

    >>> main, aux = lf.on_output("class", lf.cross_entropy), lf.on_output("aux", lf.cross_entropy)
    >>> outputs = {"class": torch.zeros(1, 2), "aux": torch.zeros(1, 2)}
    >>> lf.sum_of_losses((1.0, main), (0.3, aux))(outputs, torch.tensor([0]))
    tensor(0.9011)
    """

    def part(outputs: Any) -> Any:
        found = part_of(outputs, name)
        if found is None:
            names = list(outputs) if isinstance(outputs, Mapping) else getattr(outputs, "_fields", ())
            has = f"its outputs are {', '.join(map(str, names))}" if names else f"it gives a {type(outputs).__name__}"
            raise UserError(f"on_output: the network has no output {name!r}; {has}")
        return found

    if takes_context(loss) or training_only:
        given = with_its_context(loss)

        def seeing(outputs: Any, targets: Any, context: LossContext) -> Tensor:
            if training_only and not context.training and part_of(outputs, name) is None:
                return torch.zeros((), device=context.inputs.device)
            return given(part(outputs), targets, lambda: context)

        return around(seeing, [loss])

    def of_part(function: Metric) -> Metric:
        return functools.wraps(function)(lambda outputs, targets: function(part(outputs), targets))

    return wrapped(of_part, loss)
