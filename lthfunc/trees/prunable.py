"""Which parameters of a module can be pruned, and which modules cannot be made a pure function at all."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod

from lthfunc.errors import UserError
from lthfunc.tracebacks import is_library_function
from lthfunc.trees.files import check_storable

#: Layers whose weights are (inputs, outputs / groups, kernel).
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
RECURRENT = (nn.RNNBase, nn.RNNCellBase)
NORMS = (
    nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm,
)  # fmt: skip
#: The names of prunable weights, by layer; of recurrent layers all matrices.
_WEIGHTS: tuple[tuple[tuple[type[nn.Module], ...], tuple[str, ...]], ...] = (
    ((nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, *CONVOLUTIONS), ("weight",)),
    ((nn.MultiheadAttention,), ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")),
)


class PrunableLayer(NamedTuple):
    """A layer with weights that can be pruned. name: in the module; weights, biases: names in the layer."""

    name: str
    module: nn.Module
    weights: tuple[str, ...]
    biases: tuple[str, ...]

    def path(self, leaf: str) -> str:
        """The name of one of its leaves in the module."""
        return f"{self.name}.{leaf}" if self.name else leaf


def prunable_layers(module: nn.Module) -> Iterator[PrunableLayer]:
    """The layers with weights that can be pruned, in module order."""
    for name, layer in module.named_modules():
        if isinstance(layer, RECURRENT):
            own = [key for key in (*layer._parameters, *getattr(layer, "parametrizations", {})) if _used(layer, key)]
            weights = tuple(key for key in own if key.startswith("weight"))
            yield PrunableLayer(name, layer, weights, tuple(key for key in own if key.startswith("bias")))
        elif is_transposed(layer):
            yield PrunableLayer(name, layer, ("weight",), ("bias",))
        else:
            for kinds, names in _WEIGHTS:
                if isinstance(layer, kinds):
                    yield PrunableLayer(name, layer, names, ("bias", "in_proj_bias"))


def _used(layer: nn.Module, name: str) -> bool:
    return name in getattr(layer, "parametrizations", {}) or layer._parameters[name] is not None


def is_transposed(layer: nn.Module) -> bool:
    """Whether it is Hugging Face's `Conv1D` (GPT-2's linear layers), whose weight is (inputs, outputs)."""
    return any(kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers.") for kind in type(layer).mro())


def transposed_weights(module: nn.Module) -> set[str]:
    """The names of weights that are (inputs, outputs)."""
    return {layer.path("weight") for layer in prunable_layers(module) if is_transposed(layer.module)}


def weights_by_inputs(module: nn.Module) -> set[str]:
    """The names of weights whose rows are inputs, not outputs, those of transposed convolutions among them."""
    found = {layer.path("weight") for layer in prunable_layers(module) if isinstance(layer.module, TRANSPOSED)}
    return found | transposed_weights(module)


def default_prunable(module: nn.Module, params: Collection[str]) -> tuple[str, ...]:
    """The names that are pruned by default, in the order of `params`.

    A parametrised weight (weight norm) is represented by the last tensor that it is computed from, its direction. One
    whose zeros don't lead to zeros (an orthogonal weight) is not pruned.
    """
    found = set()
    for layer in prunable_layers(module):
        for weight in layer.weights:
            if is_parametrized(layer.module, weight):
                inner = layer.path(f"parametrizations.{weight}.original")
                if preserves_zeros(layer.module, weight):
                    found |= {key for key in (inner, f"{inner}1") if key in params}
            found.add(layer.path(weight))
    return tuple(key for key in params if key in found)


def preserves_zeros(layer: nn.Module, weight: str) -> bool:
    """Whether a parametrised weight is zero wherever the tensor that it is computed from is."""
    listed: Any = copy.deepcopy(layer.parametrizations[weight])  # type: ignore[index]
    leaf = listed.original if hasattr(listed, "original") else getattr(listed, "original1", None)
    if not isinstance(leaf, Tensor) or leaf.shape != getattr(layer, weight).shape:
        return False
    draw = torch.Generator().manual_seed(0)
    values = torch.rand(leaf.shape, generator=draw) + 0.5
    dead = torch.rand(leaf.shape, generator=draw) < 0.5
    with torch.no_grad():
        leaf.copy_(torch.where(dead, 0, values))
        made = listed()
    return bool((made[dead.to(made.device)] == 0).all())


def select_prunable(
    params: Collection[str],
    default_prunable: Collection[str],
    prune_only: Sequence[str] = (),
    never_prune: Sequence[str] = (),
) -> tuple[str, ...]:
    """The names that match a pattern of `prune_only` (by default the default ones) and none of `never_prune`.

    Patterns are as in a shell (``"conv*"``, ``"*.in_proj_weight"``). Raises UserError where one matches nothing, or
    nothing is left.
    """
    names = list(params) if prune_only else [name for name in params if name in set(default_prunable)]
    if prune_only:
        wanted = set().union(*(matching_names("prune_only", pattern, names) for pattern in prune_only))
        names = [name for name in names if name in wanted]
    kept = set().union(*(matching_names("never_prune", pattern, names) for pattern in never_prune))
    left = tuple(name for name in names if name not in kept)
    if not left:
        raise UserError(f"never_prune: nothing is left to prune of {', '.join(names)}")
    return left


def matching_names(option: str, pattern: str, names: Sequence[str]) -> set[str]:
    """The names that match. Raises UserError if none does."""
    fits = set(fnmatch.filter(names, pattern))
    if not fits:
        raise UserError(f"{option}: no parameter matches {pattern!r} (parameters: {', '.join(names)})")
    return fits


def check_pure(module: nn.Module) -> None:
    """Raise UserError, with a remedy, for a module that cannot be made a function of its parameters and buffers."""
    for name, leaf in (*module.named_parameters(), *module.named_buffers()):
        if nn.parameter.is_lazy(leaf):
            raise UserError(f"{name} has no shape yet: call the lazy module once on an example first")
    check_storable(module)
    check_gradient_hooks(module)
    for name, part in module.named_modules():
        where = name or type(part).__name__
        if isinstance(part, torch.jit.ScriptModule):
            raise UserError(f"{where} is a ScriptModule (torch.jit), which cannot be changed; pass the original module")
        for hook in part._forward_pre_hooks.values():
            if isinstance(hook, BasePruningMethod):
                raise UserError(f"{where} is pruned by torch.nn.utils.prune: use lthfunc.from_pruned(module)")
            other = {"WeightNorm": "weight_norm", "SpectralNorm": "spectral_norm"}.get(type(hook).__name__)
            if other is not None:
                raise UserError(
                    f"{where} recomputes its weight in a hook: use torch.nn.utils.parametrizations.{other} instead"
                )


_INSTEAD = "remove it, and change gradients in an optimizer of your own: lf.Optimizer(init, update)"


def check_gradient_hooks(module: nn.Module) -> None:
    """Raise UserError for a hook on a gradient that would not run; copies of a module lose their parameters' hooks."""
    for name, leaf in module.named_parameters():
        hook = "register_hook" if leaf._backward_hooks else "register_post_accumulate_grad_hook"
        after = (leaf._post_accumulate_grad_hooks or {}).values()
        if leaf._backward_hooks or not all(map(is_library_function, after)):  # those of lf.attach hold masks
            raise UserError(f"{name} has a gradient hook ({hook}), which would never run; " + _INSTEAD)
    for name, part in module.named_modules():
        # Hooks of the older kind (register_backward_hook) are attached to outputs, and run.
        full = part._backward_hooks if part._is_full_backward_hook else ()
        for own, hooks in (("", full), ("pre_", part._backward_pre_hooks)):
            if hooks:
                raise UserError(
                    f"{name or type(part).__name__} has a backward hook (register_full_backward_{own}hook), which "
                    f"gradients taken by torch.func cannot run; {_INSTEAD}"
                )


#: Packages whose modules are known to be pure.
_TIDY = ("lthfunc.models.", "torchvision.models.", "torchvision.ops.")


def is_pure_module(module: nn.Module) -> bool:
    """Whether a module consists of nothing but layers of this library's catalogue, torchvision and torch.

    Those write into no input or parameter, and into buffers in training only. Of any other module this is unknown.
    """
    parts = list(module.modules())
    return type(module).__module__.startswith(_TIDY) and all(
        type(part).__module__.startswith((*_TIDY, "torch.nn.modules."))
        and getattr(part, "max_norm", None) is None
        and not ("forward" in vars(part) or part._forward_hooks or part._forward_pre_hooks)
        for part in parts
    )
