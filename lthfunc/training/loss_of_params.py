"""A network's loss and outputs as functions of its params, for scores and growth."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from lthfunc.arguments import public
from lthfunc.errors import UserError
from lthfunc.printable import dtype_name
from lthfunc.tracebacks import is_library_function
from lthfunc.training.loss_context import NetworkLoss, takes_context
from lthfunc.training.losses import Loss, cross_entropy
from lthfunc.trees.model import Model, apply_evaluating, apply_training
from lthfunc.trees.module_errors import failing
from lthfunc.trees.outputs import map_outputs
from lthfunc.trees.types import Batch, Buffers, Params


@dataclass(frozen=True)
class LossOf:
    """(params, batch) -> the mean loss of a network in training mode; its buffers don't change.

    tidy: whether it writes into nothing: the network gets copies, a user's loss the params and targets as they are.
    """

    model: Model
    buffers: Buffers
    loss: Loss
    temperature: float = 1.0
    tidy: bool = field(init=False, repr=False, compare=False)
    _of_outputs: NetworkLoss = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Not (cached) properties, whose locks and signatures keep torch.compile of PyTorch 2.11 out.
        object.__setattr__(self, "_of_outputs", NetworkLoss(self.model, self.loss))
        object.__setattr__(self, "tidy", is_library_function(self.loss) and not takes_context(self.loss))

    def __call__(self, params: Params, batch: Batch) -> Tensor:
        """The loss, a scalar."""

        def call(model: Model, inputs: Tensor) -> tuple[Any, None]:
            outputs, _ = apply_training(model, params, self.buffers, inputs)
            if self.temperature != 1:
                outputs = map_outputs(lambda leaf: leaf / self.temperature if _is_real(leaf) else leaf, outputs)
            return outputs, None

        return self._of_outputs(call, batch, params, training=True)[0]

    def by_example(self) -> LossOf:
        """The same loss with batch norms' running statistics, since a single example has none."""
        training = self.model.training
        if not any(isinstance(part, _BatchNorm) for part in training.modules()):
            return self
        training = copy.deepcopy(training)
        for part in training.modules():
            if isinstance(part, _BatchNorm):
                part.eval()
        return replace(self, model=self.model._replace(training=training))

    def at_temperature(self, temperature: float) -> LossOf:
        """The same loss of outputs divided by a temperature."""
        return replace(self, temperature=temperature)


def _is_real(leaf: Tensor) -> bool:
    """Whether it holds numbers by which a loss can be differentiated."""
    return leaf.is_floating_point() or leaf.is_complex()


@public
def loss_of(model: Model, buffers: Buffers, loss: Loss = cross_entropy) -> LossOf:
    """The mean loss of the model in training mode, as a function (params, batch) -> scalar, for scores and growth.

    buffers: of the network; they don't change. loss: (outputs, targets) -> scalar.

    >>> model = lf.from_module(nn.Linear(4, 2))
    >>> loss = lf.loss_of(model, {})
    >>> loss(lf.init(model).params, (torch.ones(3, 4), torch.tensor([0, 1, 1]))).shape
    torch.Size([])
    """
    return LossOf(model, buffers, loss)


@public
def forward_of(model: Model, buffers: Buffers) -> Callable[[Params, Tensor], Any]:
    """The model in evaluation mode, as a function (params, inputs) -> outputs in the inputs' dtype, for `synflow`.

    buffers: of the network. Raises UserError for a network that reads tokens, and, when it is called, where the network
    cannot be run in that dtype.

    >>> model = lf.from_module(nn.Linear(4, 2))
    >>> forward = lf.forward_of(model, {})
    >>> forward(lf.tree_map(torch.Tensor.double, lf.init(model).params), torch.ones(1, 4, dtype=torch.float64)).dtype
    torch.float64
    """
    if model.tokens:
        raise UserError(f"score: synflow requires a network with real inputs, but {model.name} reads tokens")

    def forward(params: Params, inputs: Tensor) -> Any:
        wide = {name: leaf.to(inputs.dtype) if leaf.is_floating_point() else leaf for name, leaf in buffers.items()}
        with failing(f"{model.name} cannot be run in {dtype_name(inputs.dtype)}, as synflow does", model.evaluating):
            return apply_evaluating(model, params, wide, inputs)

    return forward
