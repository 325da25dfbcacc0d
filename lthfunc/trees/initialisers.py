"""Initial parameters: functions (module, its params, seed) -> params."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm, _WeightNorm
from torch.nn.utils.parametrize import is_parametrized

from lthfunc.arguments import public
from lthfunc.trees.global_rng import seeded_generators
from lthfunc.trees.prunable import NORMS, RECURRENT, PrunableLayer, is_transposed, prunable_layers
from lthfunc.trees.rng import generator, key
from lthfunc.trees.types import Buffers, Params

#: Draws the parameters of a module: (module, its current params, seed) -> params. Buffers that depend on them may be
#: included.
Initialiser = Callable[[nn.Module, Params, int], Params]

#: The standard deviation of Hugging Face's Conv1D (Radford et al. 2018, sec. 4.1).
_TRANSPOSED_STD = 0.02


@public
def glorot_normal(module: nn.Module, params: Params, seed: int) -> Params:
    """Draw the weights of prunable layers from N(0, 2 / (fan_in + fan_out)), and set their biases to zero.

    Gaussian Glorot (Glorot & Bengio 2010, eq. 16), the initialisation of Frankle & Carbin 2019, fig. 2. Recurrent
    layers are uniform within 1 / sqrt(units), as in PyTorch, and Hugging Face's Conv1D is N(0, 0.02²). A user's own
    layers with `reset_parameters` are drawn by it. Each parameter has its own random stream, so a layer's draw doesn't
    depend on the layers before it. Values that are evidently not random (zeros, ones, an identity, equal rows, a
    padding row, biases that were set) and all other parameters stay as they were built.

    module: whose layers they are. params: its current params. seed: of the draws. Returns the new params.

    >>> net = nn.Linear(4, 2)
    >>> lf.glorot_normal(net, dict(net.named_parameters()), seed=0)["bias"]
    tensor([0., 0.])
    """
    drawn = dict(params)
    for _, draw in _draws(module, params):
        drawn |= draw(seed)
    return drawn


def drawn_matrices(names: Iterable[str], built: Params, seed: int) -> Params:
    """Gaussian Glorot for further matrices, which a user has chosen to prune; values that were set on purpose stay."""
    return {name: built[name].clone() if _meant(built[name]) else _glorot(name, built[name], seed) for name in names}


@public
def as_built(module: nn.Module, params: Params, seed: int) -> Params:
    """The params that the module was built with, whatever the seed: a pretrained network's, for example.

    >>> net = nn.Linear(4, 2)
    >>> torch.equal(lf.init(lf.from_module(net, init=lf.as_built), seed=7).params["weight"], net.weight)
    True
    """
    return params


def fixed_matrices(module: nn.Module, params: Params, prunable: tuple[str, ...]) -> tuple[str, ...]:
    """The matrices that are neither pruned nor drawn by `glorot_normal`, and so are the same for every seed."""
    drawn = {name for name, _ in _draws(module, params)}
    norms = {
        f"{name}.{own}" if name else own
        for name, part in module.named_modules()
        if isinstance(part, NORMS)
        for own in part._parameters
    }
    return tuple(
        name for name, leaf in params.items() if leaf.ndim > 1 and max(leaf.shape) < leaf.numel() and name not in
        {*drawn, *norms, *prunable}
    )  # fmt: skip


def dependent_buffers(module: nn.Module, built: Params, buffers: Buffers, drawn: Params) -> Buffers:
    """The buffers that depend on the drawn params: copies of them, and spectral norm's vectors."""
    found = dict(buffers)
    new = {name: leaf for name, leaf in drawn.items() if name in built and not torch.equal(leaf, built[name])}
    if not new:
        return found
    for name, buffer in buffers.items():
        for other in new:
            leaf = built[other]
            alike = leaf.numel() > 1 and leaf.shape == buffer.shape and leaf.dtype == buffer.dtype
            if alike and leaf.any() and torch.equal(leaf, buffer):
                found[name] = new[other].clone()
    for name, part in module.named_modules():
        if isinstance(part, _SpectralNorm) and f"{name}._u" in buffers:
            weight = f"{name.rpartition('.')[0]}.original"
            if weight in new:
                norm = copy.deepcopy(part)
                norm._power_method(norm._reshape_weight_to_matrix(new[weight]), 15)
                found |= {f"{name}._u": norm._u.detach(), f"{name}._v": norm._v.detach()}
    return found


#: A leaf's name, and a function seed -> leaves.
_Draw = tuple[str, Callable[[int], Mapping[str, Tensor]]]


def _draws(module: nn.Module, params: Params) -> Iterator[_Draw]:
    """What is drawn, in module order; a tied weight is listed once, under its first name."""
    known = set()
    for layer in prunable_layers(module):
        known.add(id(layer.module))
        for weight in layer.weights:
            if is_parametrized(layer.module, weight):
                yield from _parametrised(layer, weight, params)
            elif (name := layer.path(weight)) in params and not _meant(_read(layer, params[name])):
                yield name, _drawn_by_kind(layer, name, params[name], is_bias=False)
        for bias in layer.biases:
            if (name := layer.path(bias)) in params and _as_by_default(layer, params[name]):
                yield name, _drawn_by_kind(layer, name, params[name], is_bias=True)
    for name, part in module.named_modules():
        if id(part) not in known and not isinstance(part, NORMS) and callable(getattr(part, "reset_parameters", None)):
            yield from _reset(name, part, params)


def _drawn_by_kind(layer: PrunableLayer, name: str, leaf: Tensor, *, is_bias: bool) -> Callable[[int], Params]:
    """A weight or bias as its layer's kind has it."""

    def draw(seed: int) -> Params:
        empty, random = torch.empty(leaf.shape, dtype=leaf.dtype), generator(seed, "init", name)
        if isinstance(layer.module, RECURRENT):
            bound = layer.module.hidden_size**-0.5
            return {name: empty.uniform_(-bound, bound, generator=random)}
        if is_bias:
            return {name: torch.zeros_like(leaf)}
        if is_transposed(layer.module):
            return {name: empty.normal_(0, _TRANSPOSED_STD, generator=random)}
        drawn = _glorot(name, leaf, seed)
        kept = _kept_rows(layer, leaf)
        if kept is not None:
            drawn[kept] = leaf[kept]
        return {name: drawn}

    return draw


def _parametrised(layer: PrunableLayer, weight: str, params: Params) -> Iterator[_Draw]:
    """A weight that is computed from one tensor, or by weight norm from magnitudes and a direction."""
    prefix = layer.path(f"parametrizations.{weight}")
    parts = list(layer.module.parametrizations[weight])  # type: ignore[index]
    whole, magnitude, direction = f"{prefix}.original", f"{prefix}.original0", f"{prefix}.original1"
    if whole in params and all(isinstance(part, _SpectralNorm) for part in parts):
        if not _meant(params[whole]):
            yield whole, lambda seed: {whole: _glorot(whole, params[whole], seed)}
    elif direction in params and len(parts) == 1 and isinstance(parts[0], _WeightNorm):
        kept = [axis for axis, size in enumerate(params[magnitude].shape) if size == 1]

        def normed(seed: int) -> Params:
            drawn = _glorot(direction, params[direction], seed)
            return {magnitude: torch.linalg.vector_norm(drawn, dim=kept, keepdim=True), direction: drawn}

        lengths = torch.linalg.vector_norm(params[direction], dim=kept, keepdim=True)
        if magnitude in params and not _meant(params[direction]):
            if torch.allclose(lengths, params[magnitude], rtol=1e-4):
                yield magnitude, lambda seed: {}
                yield direction, normed
            else:  # set by the user
                yield direction, lambda seed: {direction: _glorot(direction, params[direction], seed)}
    else:
        yield from _assigned(layer, weight, params)


def _assigned(layer: PrunableLayer, weight: str, params: Params) -> Iterator[_Draw]:
    """Any other parametrisation: a drawn weight is assigned, and its `right_inverse` gives the tensors."""
    inside = [name for name in params if name.startswith(layer.path(f"parametrizations.{weight}."))]

    def assign(seed: int) -> Params:
        module = copy.deepcopy(layer.module)
        name = layer.path(weight)
        with torch.no_grad(), seeded_generators(key(seed, "init", name)):
            setattr(module, weight, _glorot(name, getattr(module, weight), seed))
        found = (*module.named_parameters(), *module.named_buffers())
        return {layer.path(own): leaf.detach().clone() for own, leaf in found
                if own.startswith(f"parametrizations.{weight}.")}  # fmt: skip

    try:
        assign(0)
    except Exception:  # it has no way back from a weight: it stays as built
        return
    for name in inside[:-1]:
        yield name, lambda seed: {}
    if inside:
        yield inside[-1], assign


def _reset(name: str, part: nn.Module, params: Params) -> Iterator[_Draw]:
    """A user's own layer: what its `reset_parameters` draws."""
    own = {f"{name}.{key}" if name else key: key for key in part._parameters}
    own = {path: key for path, key in own.items() if path in params}
    if not own:
        return

    def drawn(seed: int) -> dict[str, Tensor]:
        module = copy.deepcopy(part)
        with torch.no_grad(), seeded_generators(key(seed, "init", name)):
            module.reset_parameters()  # type: ignore[operator]
        return {path: leaf.detach().clone() for path, own_name in own.items()
                if (leaf := module._parameters[own_name]) is not None}  # fmt: skip

    try:
        one, other = drawn(0), drawn(1)
    except Exception:  # what cannot be called so is no initialiser
        return
    for path in own:
        fits = path in one and one[path].shape == params[path].shape
        if fits and not torch.equal(one[path], other[path]) and not _meant(params[path]):
            yield path, lambda seed, path=path: {path: drawn(seed)[path]}  # type: ignore[misc]


def _kept_rows(layer: PrunableLayer, leaf: Tensor) -> Tensor | None:
    """The rows of an embedding that were not drawn (padding, zeros): bool (rows,), or None without any."""
    if not isinstance(layer.module, (nn.Embedding, nn.EmbeddingBag)):
        return None
    kept = ~leaf.any(1)
    if layer.module.padding_idx is not None:
        kept[layer.module.padding_idx] = True
    return kept if bool(kept.any()) else None


def _read(layer: PrunableLayer, leaf: Tensor) -> Tensor:
    """A weight without the rows that stay as built."""
    kept = _kept_rows(layer, leaf)
    return leaf if kept is None or bool(kept.all()) else leaf[~kept]


def _meant(leaf: Tensor) -> bool:
    """Whether values were set on purpose: equal rows, or a row of nothing but zeros and ±1."""
    rows = leaf.flatten(1) if leaf.ndim > 1 else leaf.flatten()[:, None]
    if leaf.numel() < 2:
        return bool((leaf == 0).all())
    alike = bool((rows == rows[:1]).all()) if len(rows) > 1 else bool((rows == rows[0, 0]).all())
    return alike or bool((((rows == 0) | (rows.abs() == 1)).all(1) & rows.any(1)).any())


def _as_by_default(layer: PrunableLayer, bias: Tensor) -> bool:
    """Whether a bias is zero or as PyTorch draws it: within 1 / sqrt(fan_in)."""
    if not bias.any():
        return not isinstance(layer.module, RECURRENT)
    weight = next((leaf for own, leaf in layer.module._parameters.items() if own.startswith("weight") and
                   leaf is not None), None)  # fmt: skip
    if isinstance(layer.module, RECURRENT):
        bound = layer.module.hidden_size**-0.5
    elif weight is None:
        bound = getattr(layer.module, "in_features", 1) ** -0.5
    elif isinstance(layer.module, nn.Bilinear):
        bound = weight.shape[1] ** -0.5
    else:
        bound = math.prod(weight.shape[1:]) ** -0.5
    drawn = bool((bias.abs() <= bound * (1 + 1e-5)).all())
    return drawn and (bias.numel() == 1 or not bool((bias == bias.flatten()[0]).all()))


def _glorot(name: str, like: Tensor, seed: int) -> Tensor:
    empty = torch.empty(like.shape, dtype=like.dtype)
    return nn.init.xavier_normal_(empty, generator=generator(seed, "init", name))
