"""States on survivors drawn at random, and in files: nothing on the way is as large as the network."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lthfunc.arguments import public
from lthfunc.errors import UserError
from lthfunc.sparsify.budgets import erk_counts
from lthfunc.training.optimizers import Optimizer
from lthfunc.training.steps import with_optimizer
from lthfunc.trees.files import load_tree, save_tree
from lthfunc.trees.ops import leaves, tree_map
from lthfunc.trees.packed_states import PackedState, size_of
from lthfunc.trees.prunable import NORMS, default_prunable, is_transposed, prunable_layers
from lthfunc.trees.rng import distinct, generator
from lthfunc.trees.types import Params, TrainState

_FORMAT = "lthfunc.packed/1"


@public
def init_packed(module: nn.Module, density: float, seed: int = 0) -> PackedState:
    """A sparse network from the first step on: random masks by `erk`, and initial weights of the survivors alone.

    module: a network of linear and convolution layers, on the meta device where it would not fit into memory (``with
    torch.device("meta"): ...``). density: of all its weights, in (0, 1]. seed: of the masks and weights, which are
    Gaussian Glorot by the inputs and outputs that are left on average, as the signal would otherwise vanish (Evci et
    al. 2022, sec. 3.1); biases are zero. What else a module has stays as it is; on the meta device it is what a new
    module has. Returns the state at step 0. Raises UserError for a density out of range, a layer of Hugging Face's
    Conv1D, and a parameter or buffer on the meta device whose initial value is not known.

    Mocanu et al. 2018, alg. 1; Evci et al. 2020, sec. 3.1.

    >>> with torch.device("meta"):
    ...     net = nn.Sequential(nn.Linear(100_000, 100_000), nn.ReLU(), nn.Linear(100_000, 10))
    >>> lf.init_packed(net, density=1e-6)
    PackedState(10,001 of 10,001,000,000 weights remain, step 0)
    """
    leaves = dict(module.named_parameters())
    names = default_prunable(module, leaves)
    shapes = {name: tuple(leaves[name].shape) for name in names}
    places, params = dict[str, Tensor](), dict[str, Tensor]()
    counts = erk_counts(shapes, density)
    known, zero = _known_values(module), _biases(module)
    for name, leaf in leaves.items():
        if name in shapes:
            size, draw = leaf.numel(), generator(seed, "packed-mask", name)
            places[name] = distinct(counts[name], size, draw)
            fans = size / leaf.shape[0] + size / leaf.shape[1]
            spread = (2 / fans * size / max(1, counts[name])) ** 0.5
            drawn = torch.randn(counts[name], generator=generator(seed, "packed-init", name))
            params[name] = (spread * drawn).to(leaf.dtype)
        else:
            params[name] = torch.zeros(leaf.shape, dtype=leaf.dtype) if name in zero else _value(name, leaf, known)
    buffers = {name: _value(name, leaf, known) for name, leaf in module.named_buffers()}
    tensors = {name: torch.tensor(shape) for name, shape in shapes.items()}
    return PackedState(params, places, tensors, buffers, (), torch.tensor(0))


def _biases(module: nn.Module) -> set[str]:
    return {layer.path(bias) for layer in prunable_layers(module) for bias in layer.biases}


def _known_values(module: nn.Module) -> dict[str, float]:
    """The initial numbers of what normalisation has."""
    found = dict[str, float]()
    for name, part in module.named_modules():
        if isinstance(part, NORMS):
            numbers = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0, "num_batches_tracked": 0.0}
            found |= {f"{name}.{own}" if name else own: number for own, number in numbers.items()}
        if is_transposed(part):
            raise UserError(f"init_packed: {name} is a layer of another kind than nn.Linear and nn.Conv2d")
    return found


def _value(name: str, leaf: Tensor, known: Mapping[str, float]) -> Tensor:
    if not leaf.is_meta:
        return leaf.detach().clone()
    if name not in known:
        raise UserError(f"init_packed: the initial value of {name} is not known, as the module is on the meta device")
    return torch.full(leaf.shape, known[name], dtype=leaf.dtype)


@public
def save_packed(path: str | os.PathLike[str], state: PackedState) -> None:
    """Write a packed state to a safetensors file: values, positions and moments, from which training goes on.

    path: of the file, which appears whole or not at all. state: what to save.

    >>> state = lf.pack_state(lf.init(lf.from_module(nn.Linear(4, 2))))
    >>> lf.save_packed("packed.safetensors", state)
    >>> lf.same_bits(lf.load_packed("packed.safetensors"), state)
    True
    """
    numbered = {str(number): leaf for number, leaf in enumerate(leaves(state.opt))}
    tree = {**state._asdict(), "opt": numbered}
    save_tree(path, {name: part for name, part in tree.items() if part != {}}, {"format": _FORMAT})


@public
def load_packed(path: str | os.PathLike[str], optimizer: Optimizer | None = None) -> PackedState:
    """Read a file of `save_packed` at `path`.

    optimizer: of the training that made the state; without one the state has no optimiser state. Returns the state.
    Raises UserError where the file holds none or a damaged one, or that of another optimiser.

    >>> state = lf.pack_state(lf.with_optimizer(lf.init(lf.from_module(nn.Linear(4, 2))), lf.adam(1e-3)))
    >>> lf.save_packed("packed.safetensors", state)
    >>> lf.same_bits(lf.load_packed("packed.safetensors", lf.adam(1e-3)), state)
    True
    """
    tree, about = load_tree(path)
    if about.get("format") != _FORMAT:
        raise UserError(f"{path}: is not a packed state (its format is {about.get('format')!r}, not {_FORMAT!r})")
    params, positions, shapes, buffers, opt = (
        tree.get(name, {}) for name in ("params", "positions", "shapes", "buffers", "opt")
    )
    if why := _why_damaged(params, positions, shapes, tree.get("step")):
        raise UserError(f"{path}: is no whole packed state: {why}")
    state, saved = PackedState(params, positions, shapes, buffers, (), tree["step"]), list(opt.values())
    if optimizer is None or not saved:
        return state
    fresh = fresh_optimizer(state, optimizer)
    kinds = [[(leaf.shape, leaf.dtype) for leaf in each] for each in (leaves(fresh), saved)]
    if kinds[0] != kinds[1]:
        raise UserError(f"{path}: its optimiser state is not that of this optimizer")
    rest = iter(saved)
    return state._replace(opt=tree_map(lambda leaf: next(rest), fresh))


def _why_damaged(
    params: Params, positions: Mapping[str, Tensor], shapes: Mapping[str, Tensor], step: Tensor | None
) -> str | None:
    """What is missing or does not fit, in words; None where all does."""
    if step is None:
        return "it has no step"
    for name in {**positions, **shapes}:
        if name not in positions or name not in shapes or name not in params:
            return f"{name} lacks its values, positions or shape"
        places, size = positions[name], size_of(shapes[name])
        if places.dtype != torch.int64 or places.shape != params[name].shape or places.ndim != 1:
            return f"{name} has other positions than one for each of its values"
        if len(places) and not (int(places[0]) >= 0 and int(places[-1]) < size and bool((places.diff() > 0).all())):
            return f"the positions of {name} are not rising numbers below {size:,}"
    return None


def fresh_optimizer(state: PackedState, optimizer: Optimizer) -> Any:
    """The state's optimiser state, or a fresh one. Raises UserError where it is another optimiser's."""
    return with_optimizer(TrainState(state.params, state.buffers, {}, state.opt, state.step), optimizer).opt
