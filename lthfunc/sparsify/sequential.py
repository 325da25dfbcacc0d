"""Post-training pruning block by block: each is pruned for the inputs that the pruned blocks before it give it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

from torch import Tensor

from lthfunc.arguments import check_state_fits, public
from lthfunc.errors import UserError, invalid
from lthfunc.sparsify.activations import Moments, MomentSums, wanda
from lthfunc.sparsify.allocation import fixed_counts, fraction_to
from lthfunc.sparsify.block_budgets import BlockBudgets, same_density
from lthfunc.sparsify.budgets import apportion, budget_of
from lthfunc.sparsify.group_selection import WholeGroups
from lthfunc.sparsify.groups import DependencyGroup
from lthfunc.sparsify.sparsegpt import BlockSelect, best_of_block, sparsegpt
from lthfunc.sparsify.structures import LayerByLayer, Select, per_output
from lthfunc.sparsify.transforms import prune_once
from lthfunc.trees.block_walk import BlockWalk, block_names
from lthfunc.trees.layer_inputs import InputReader, layers_with_inputs
from lthfunc.trees.model import Model
from lthfunc.trees.ops import Count, apply_masks, clone, count, layer_counts
from lthfunc.trees.patterns import check_patterns
from lthfunc.trees.transformations import Transformation
from lthfunc.trees.types import Masks, Params, TrainState

_Leaf = TypeVar("_Leaf")
#: The weights of each block.
_Layers = Mapping[str, Sequence[str]]


class LayerPruning(NamedTuple):
    """How the layers of one block are pruned.

    prune: (moments of their inputs, how many weights each keeps) -> a transformation of a state of these layers.
    diagonal: whether the moments' diagonals are enough for it. exempt: the patterns of names that it goes by, each of
    which must match a prunable weight of the network. groups: those that it prunes as a whole, each of which must lie
    within one block; it then gets layers as they are stored, else as (outputs, inputs).
    """

    prune: Callable[[Moments, Mapping[str, int]], Transformation]
    diagonal: bool = False
    exempt: Sequence[str] = ()
    groups: Sequence[DependencyGroup] = ()


@public
def wanda_pruning(select: Select | None = None) -> LayerPruning:
    """Prune layers by `wanda`'s score.

    select: which weights stay, by default equally many of each output; it is given one block's layers at a time. Of
    `whole_groups`, each group must lie within one block, as heads do. Returns what `prune_sequentially` takes.

    >>> lf.wanda_pruning(lf.n_of_m(2, 4)).diagonal
    True
    """
    chosen = select or per_output()
    if isinstance(chosen, WholeGroups):
        return _whole_groups_pruning(chosen)
    # A pattern need not match a layer of each block.
    among, exempt = (chosen.among, chosen.exempt) if isinstance(chosen, LayerByLayer) else (chosen, ())

    def prune(moments: Moments, keep: Mapping[str, int]) -> Transformation:
        return lambda state: prune_once(state, 0.0, wanda(moments), fixed_counts(keep), among)

    return LayerPruning(prune, diagonal=True, exempt=exempt)


def _whole_groups_pruning(chosen: WholeGroups) -> LayerPruning:
    def prune(moments: Moments, keep: Mapping[str, int]) -> Transformation:
        return lambda state: prune_once(state, 0.0, wanda(moments), fixed_counts(keep), chosen.among(state.masks))

    return LayerPruning(prune, diagonal=True, groups=chosen.groups)


@public
def sparsegpt_pruning(choose: BlockSelect = best_of_block, *, block: int = 128, damping: float = 0.01) -> LayerPruning:
    """Prune layers by `sparsegpt`.

    choose, block, damping: as it takes them. Returns what `prune_sequentially` takes.

    >>> lf.sparsegpt_pruning(block=64).diagonal
    False
    """
    return LayerPruning(partial(sparsegpt, choose=choose, block=block, damping=damping))


@public
def prune_sequentially(
    model: Model,
    inputs: Sequence[Tensor],
    density: float,
    *,
    pruning: LayerPruning | None = None,
    budgets: BlockBudgets | None = None,
    blocks: Sequence[str] = (),
    on_block: Callable[[str, Count], object] | None = None,
) -> Transformation:
    """Prune a trained network block by block, without training it.

    Each block's layers are pruned for the inputs that they get from the pruned blocks before it (Frantar & Alistarh
    2023, sec. 4; Sun et al. 2024, sec. 3). Linear layers and convolutions within blocks are pruned; all other layers
    stay. Beside the weights, memory holds what one block returns for all batches, and the moments of its layers.

    model: the network. inputs: batches of scaled inputs, (n, ...) each, of some hundred examples. density: of these
    layers together, in (0, 1]. pruning: `sparsegpt_pruning`, the default, `wanda_pruning` or your own. budgets: what
    each block keeps, `same_density`, the default, `owl` or `alpha_pruning`; within a block all layers have one density.
    blocks: name patterns of submodules, by default those of a class in lists, as a transformer has them, or else each
    layer. on_block: is called with each block's name and what is left of it. Returns a transformation.

    Raises UserError, when it is applied, where blocks are not called one after the other, each on what the one before
    it returned; for a prunable weight whose inputs can't be read; for a group of layers of several blocks; and for a
    density out of range.

    >>> net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    >>> model = lf.from_module(net, init=lf.as_built)
    >>> pruned = lf.prune_sequentially(model, [torch.randn(50, 6)], density=0.5)(lf.init(model))
    >>> lf.density(pruned.masks)
    0.5
    """
    pruning, budgets = pruning or sparsegpt_pruning(), budgets or same_density()

    def transformation(state: TrainState) -> TrainState:
        check_state_fits("prune_sequentially", model, state)
        if not inputs or not all(map(len, inputs)):
            raise invalid("inputs", [len(each) for each in inputs], "one batch or more, of one example or more")
        check_patterns("exempt", pruning.exempt, state.masks)
        # A network may write into what it is called with.
        params, buffers = clone((apply_masks(state.params, state.masks), state.buffers))
        masks, layers = dict(state.masks), block_layers(model, blocks)
        if not any(layers.values()):
            raise UserError(f"blocks: no prunable weight of {model.name} lies within a module that is a block")
        _check_groups(pruning.groups, masks, layers)
        started = partial(BlockWalk, model, params, buffers, inputs, tuple(layers))
        measures = _measures(model, params, masks, layers, budgets, started)
        keep = _keep(masks, layers, measures, density, budgets)
        walk = started()
        for block in walk.order:
            sums = MomentSums(model, pruning.diagonal)
            walk.read(params, InputReader(layers[block], params, sums.add))
            part = state._replace(params=_only(params, layers[block]), masks=_only(masks, layers[block]), opt=())
            new = _pruned(part, sums.moments(), _only(keep, layers[block]), pruning)
            params, masks = params | new.params, masks | new.masks
            if on_block is not None:
                on_block(block, count(new.masks))
            if block != walk.order[-1]:
                walk.advance(params)
        return state._replace(params=params, masks=masks, opt=())

    return transformation


def block_layers(model: Model, patterns: Sequence[str] = ()) -> dict[str, tuple[str, ...]]:
    """The prunable weights of each block of `block_names`. Raises UserError for one whose inputs can't be read."""
    readable = layers_with_inputs(model, convolutions=True)
    names = block_names(model, patterns)
    found = {block: tuple(name for name in model.prunable if name.startswith(f"{block}.")) for block in names}
    for name in (name for names in found.values() for name in names):
        if name not in readable:
            raise _unreadable(name)
    return found


def _check_groups(groups: Sequence[DependencyGroup], masks: Masks, layers: _Layers) -> None:
    """Raise UserError for a group with weights of several blocks, or both within a block and outside."""
    block_of = {name: block for block, names in layers.items() for name in names}
    for group in groups:
        first, *others = [part.name for part in group.parts if part.name in masks] or [""]
        other = next((name for name in others if block_of.get(name) != block_of.get(first)), None)
        if other is not None:
            raise UserError(
                f"structure: blocks are pruned one after the other, but a group has weights of {first} and {other}, "
                "which are not of one block; use heads, exempt one of the two, or name larger blocks"
            )


def _measures(
    model: Model, params: Params, masks: Masks, layers: _Layers, budgets: BlockBudgets, started: Callable[[], BlockWalk]
) -> dict[str, float]:
    """What the budgets measure of each block, in the network before pruning."""
    walk = started() if budgets.inputs else None
    found = {}
    for block in walk.order if walk else layers:
        sums = MomentSums(model, diagonal=True)
        if walk:
            walk.advance(params, InputReader(layers[block], params, sums.add))
        found[block] = budgets.measure(_only(params, layers[block]), _only(masks, layers[block]), sums.moments())
    return found


def _keep(
    masks: Masks, layers: _Layers, measures: Mapping[str, float], density: float, budgets: BlockBudgets
) -> dict[str, int]:
    """How many weights each layer keeps: those of a block in proportion to their sizes."""
    parts = {block: _only(masks, names) for block, names in layers.items()}
    whole = {name: mask for part in parts.values() for name, mask in part.items()}
    sizes = [count(part).total for part in parts.values()]
    densities = budgets.densities([measures[block] for block in parts], sizes, density)
    weights = {
        name: min(1.0, max(0.0, each)) * mask.numel()
        for part, each in zip(parts.values(), densities, strict=True)
        for name, mask in part.items()
    }
    living = {name: layer.kept for name, layer in layer_counts(whole).items()}
    return apportion(budget_of(whole, fraction_to(density, whole)), weights, living, dict.fromkeys(whole, 0))


def _pruned(part: TrainState, moments: Moments, keep: Mapping[str, int], pruning: LayerPruning) -> TrainState:
    """The layers of a block, pruned as (outputs, inputs), in which shape all are handed over but those of groups."""
    unread = [name for name in part.masks if name not in moments]
    if unread:
        raise _unreadable(unread[0])
    if pruning.groups:  # which are slices of what is stored
        return pruning.prune(moments, keep)(part)
    turned = moments.transposed & {*part.masks}
    moments.transposed = frozenset()
    new = pruning.prune(moments, keep)(_turned(part, turned))
    return _turned(new, turned)


def _unreadable(name: str) -> UserError:
    """Of a weight that is not multiplied by a linear layer or a convolution: of attention, a recurrent layer …"""
    return UserError(
        f"blocks: the inputs of {name} can't be read, since no linear layer or convolution is called with it; "
        f"lf.with_prunable(model, never_prune=[{name!r}]) leaves it as it is"
    )


def _turned(state: TrainState, names: Collection[str]) -> TrainState:
    params, masks = (
        {name: leaf.T.contiguous() if name in names else leaf for name, leaf in tree.items()}
        for tree in (state.params, state.masks)
    )
    return state._replace(params=params, masks=masks)


def _only(tree: Mapping[str, _Leaf], names: Collection[str]) -> dict[str, _Leaf]:
    return {name: tree[name] for name in names}
