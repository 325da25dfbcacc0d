"""Networks from which others learn: called in evaluation mode, without a gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from lthfunc.trees.features import capturing, with_features
from lthfunc.trees.model import Model, apply_evaluating
from lthfunc.trees.module_attributes import copy_module
from lthfunc.trees.module_errors import taking_inputs
from lthfunc.trees.outputs import map_outputs
from lthfunc.trees.prunable import is_pure_module
from lthfunc.trees.types import Buffers, Params


class TeacherOutputs(NamedTuple):
    """outputs: of a teacher on the inputs of a batch. features: what the layers that a loss asks for returned, by name.

    Neither has a gradient.
    """

    outputs: Any
    features: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Teacher:
    """A trained network as a function of inputs. features: the layers whose outputs it gives as well."""

    model: Model
    params: Params
    buffers: Buffers
    features: tuple[str, ...]

    def __call__(self, inputs: Tensor) -> TeacherOutputs:
        """Outputs and features. Raises UserError where the network cannot take the inputs."""
        inputs = inputs.detach()
        taking = taking_inputs(f"teacher: {self.model.name}", inputs.shape[1:], self.model.evaluating)
        with taking, capturing(self.features) as features:
            outputs = apply_evaluating(self.model, self.params, self.buffers, inputs)
        outputs, seen = map_outputs(Tensor.detach, (outputs, dict(features)))
        return TeacherOutputs(outputs, seen)


def teacher_of(module: nn.Module, features: Sequence[str] = ()) -> Teacher:
    """A module as a teacher; it is copied. Raises UserError for a layer that it lacks."""
    pure = is_pure_module(module)
    module = copy_module(module).eval().requires_grad_(False)
    params = {name: leaf.detach() for name, leaf in module.named_parameters()}
    model = Model(type(module).__name__, module, module, (), lambda seed: (params, buffers), pure=pure)
    buffers = dict(module.named_buffers())
    return Teacher(with_features(model, features, "of_teacher"), params, buffers, tuple(features))
