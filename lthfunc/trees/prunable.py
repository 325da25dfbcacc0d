"""Which parameters of a module may be pruned, and what cannot be made a pure function at all."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterator, Sequence

from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod

from lthfunc.errors import UserError

CONVOLUTIONS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
#: The layers whose weights are pruned, and the names of those weights.
LAYERS: tuple[tuple[tuple[type[nn.Module], ...], tuple[str, ...]], ...] = (
    ((nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, *CONVOLUTIONS), ("weight",)),
    ((nn.MultiheadAttention,), ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")),
)


def layers_of(module: nn.Module) -> Iterator[tuple[str, nn.Module, tuple[str, ...]]]:
    """(name, layer, names of its weights) of each layer with weights that may be pruned, in module order."""
    for name, layer in module.named_modules():
        for kinds, weights in LAYERS:
            if isinstance(layer, kinds):
                yield name, layer, weights


def usual(module: nn.Module, params: Collection[str]) -> tuple[str, ...]:
    """The names that are pruned unless told otherwise, in the order of `params`.

    A weight under a parametrisation (weight norm, say) is the last tensor that it is computed from: its direction.
    """
    found = set()
    for name, layer, weights in layers_of(module):
        prefix = f"{name}." if name else ""
        for weight in weights:
            if is_parametrized(layer, weight):
                inner = f"{prefix}parametrizations.{weight}.original"
                found |= {key for key in (inner, f"{inner}1") if key in params}
            found.add(f"{prefix}{weight}")
    return tuple(key for key in params if key in found)


def chosen(
    params: Collection[str], usual: Collection[str], only: Sequence[str] = (), keep: Sequence[str] = ()
) -> tuple[str, ...]:
    """The names that fit a pattern of `only` (of any parameter; without one the usual) and none of `keep`.

    Patterns are as in a shell (``"conv*"``, ``"*.in_proj_weight"``). Raises UserError where one fits nothing, or
    nothing is left.
    """
    names = list(params) if only else [name for name in params if name in set(usual)]
    if only:
        wanted = set().union(*(fitting("--prune-only", pattern, names) for pattern in only))
        names = [name for name in names if name in wanted]
    kept = set().union(*(fitting("--keep", pattern, names) for pattern in keep))
    left = tuple(name for name in names if name not in kept)
    if not left:
        raise UserError(f"--keep: nothing is left to prune of {', '.join(names)}")
    return left


def fitting(option: str, pattern: str, names: Sequence[str]) -> set[str]:
    """The names that fit. Raises UserError where none does."""
    fits = set(fnmatch.filter(names, pattern))
    if not fits:
        raise UserError(f"{option}: no parameter fits {pattern!r} (parameters: {', '.join(names)})")
    return fits


def check_pure(module: nn.Module) -> None:
    """Raise UserError, with a way out, for what cannot be made a function of its parameters and buffers."""
    for name, leaf in (*module.named_parameters(), *module.named_buffers()):
        if nn.parameter.is_lazy(leaf):
            raise UserError(f"{name} has no shape yet: call the module once on an example before (a lazy module)")
    for name, part in module.named_modules():
        where = name or type(part).__name__
        for hook in part._forward_pre_hooks.values():
            if isinstance(hook, BasePruningMethod):
                raise UserError(f"{where} is pruned by torch.nn.utils.prune: lthfunc.from_pruned(module) takes it over")
            if type(hook).__name__ in ("WeightNorm", "SpectralNorm"):
                other = "weight_norm" if type(hook).__name__ == "WeightNorm" else "spectral_norm"
                raise UserError(
                    f"{where} recomputes its weight in a hook: use torch.nn.utils.parametrizations.{other} instead"
                )
