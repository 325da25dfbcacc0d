"""Pure functions over trees: map, clone, move, compare, mask, count."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import optree
import torch
from torch import Tensor

from lthfunc.arguments import check_argument, public
from lthfunc.errors import UserError
from lthfunc.printable import dtype_and_shape
from lthfunc.tracebacks import first_line
from lthfunc.trees.types import Buffers, Dataset, Masks, Params, Scale, Split

T = TypeVar("T")


def tree_map(function: Callable[..., Any], tree: T, *rest: Any) -> T:
    """Apply a function to every leaf of a tree, and of the trees `rest` of the same structure beside it.

    Dictionaries keep their order and named tuples their type. Returns the new tree.

    >>> lf.tree_map(torch.add, {"w": torch.ones(2)}, {"w": torch.ones(2)})
    {'w': tensor([2., 2.])}
    """
    return optree.tree_map(function, tree, *rest)  # type: ignore[arg-type,return-value]


def leaves(tree: Any) -> list[Any]:
    """The leaves of a tree, in a fixed order."""
    return optree.tree_leaves(tree)


def flattened(tree: T) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], T]]:
    """(the leaves in a fixed order, a function that builds the same tree from as many leaves)."""
    parts, structure = optree.tree_flatten(tree)  # type: ignore[arg-type,var-annotated]

    def rebuilt(leaves: Sequence[Tensor]) -> T:
        return optree.tree_unflatten(structure, leaves)  # type: ignore[return-value]

    return parts, rebuilt


def map_leaves_like(params: Params, tree: Any, function: Any, *rest: Any) -> Any:
    """A tree with `function` applied to every dictionary with the keys of `params`, such as moments.

    rest: trees of the same structure, whose dictionaries are further arguments.
    """

    def like(node: Any) -> bool:
        return isinstance(node, dict) and node.keys() == params.keys()

    def applied(node: Any, *others: Any) -> Any:
        return function(node, *others) if like(node) else node

    return optree.tree_map(applied, tree, *rest, is_leaf=like)


def clone(tree: T) -> T:
    """A copy that shares no memory with `tree`; leaves that are not tensors stay."""
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, tree)


def to_device(tree: T, device: torch.device | str) -> T:
    """The tree on `device`; leaves that are there already are shared."""
    return tree_map(lambda leaf: leaf.to(device), tree)


def in_dtype_of(x: Tensor, params: Params, buffers: Buffers) -> tuple[Params, Buffers] | None:
    """(params, buffers) in the dtype of real inputs, in which states of a training may be.

    None where nothing has to change: for whole-number inputs, inputs of the params' dtype, and params that are complex
    or of several dtypes.
    """
    dtypes = {leaf.dtype for leaf in params.values()}
    real = all(each.is_floating_point for each in (*dtypes, x.dtype))
    if not real or len(dtypes) != 1 or x.dtype in dtypes:
        return None
    return tree_map(lambda leaf: leaf.to(x.dtype) if leaf.is_floating_point() else leaf, (params, buffers))


def check_device(device: torch.device | str) -> None:
    """Raise UserError for a device that is unknown or not available."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device: {str(device)!r} cannot be used here ({first_line(error)})") from error


def data_to_device(data: Dataset, device: torch.device | str, room: int | None = None) -> Dataset:
    """The data set's tensors on `device`. room: bytes; splits that would exceed it stay where they are."""

    def move(split: Split) -> Split:
        nonlocal room
        size = split.x.nbytes + split.y.nbytes
        if room is not None:
            if size > room:
                return split
            room -= size
        return Split(split.x.to(device), split.y.to(device))

    return data._replace(train=move(data.train), val=move(data.val), test=move(data.test))


def scaled(x: Tensor, scale: Scale | None) -> Tensor:
    """Stored inputs (n, channels, ...) as a network takes them: float32, or unchanged without a scale."""
    if scale is None:
        return x
    if len(scale.mean) == 1:  # numbers compile to less than tensors do
        return x.float() * (1 / (scale.unit * scale.std[0])) - scale.mean[0] / scale.std[0]
    gain = _channels([1 / (scale.unit * std) for std in scale.std], x)
    shift = _channels([mean / std for mean, std in zip(scale.mean, scale.std, strict=True)], x)
    return x.float() * gain - shift


def _channels(values: list[float], x: Tensor) -> Tensor:
    # Fills instead of a list, which a compiled step on a GPU would copy from the host in every step.
    filled = torch.stack([torch.full((), value, device=x.device) for value in values])
    return filled.view(-1, *(1,) * (x.ndim - 2))


def parts_squared(leaf: Tensor) -> Tensor:
    """The square; of a complex number, of each of its real parts."""
    return torch.complex(leaf.real.square(), leaf.imag.square()) if leaf.is_complex() else leaf * leaf


def same_bits(left: Any, right: Any) -> bool:
    """Whether the trees `left` and `right` have the same structure, dtypes, shapes and bits; NaN equals NaN.

    >>> lf.same_bits({"w": torch.tensor([float("nan")])}, {"w": torch.tensor([float("nan")])})
    True
    """
    if optree.tree_structure(left) != optree.tree_structure(right):
        return False
    return all(
        a.dtype == b.dtype and a.shape == b.shape and torch.equal(raw_bytes(a), raw_bytes(b))
        for a, b in zip(leaves(left), leaves(right), strict=True)
    )


def leaf_difference(ours: Mapping[Any, Tensor], theirs: Mapping[Any, Tensor]) -> str | None:
    """The first difference of two dictionaries in names, shapes or dtypes, in words; None if there is none."""
    if ours.keys() != theirs.keys():
        return f"{sorted(ours.keys() ^ theirs.keys(), key=str)[0]} is in one of them only"
    for name, leaf in theirs.items():
        if (ours[name].shape, ours[name].dtype) != (leaf.shape, leaf.dtype):
            return f"{name} is {dtype_and_shape(ours[name])}, not {dtype_and_shape(leaf)}"
    return None


def scattered(values: Tensor, positions: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A dense leaf: the values at their positions in the flattened leaf, zero elsewhere."""
    dense = torch.zeros(shape, dtype=values.dtype, device=values.device)
    dense.view(-1).scatter_(0, positions, values)
    return dense


def raw_bytes(leaf: Tensor) -> Tensor:
    """A tensor's bytes, uint8 (bytes,) on the CPU; a view where that is possible."""
    return leaf.detach().cpu().contiguous().flatten().view(torch.uint8)


def full_masks(params: Params, prunable: tuple[str, ...]) -> Masks:
    """The masks of a dense network: True everywhere, for the leaves named in `prunable`."""
    return {name: torch.ones_like(params[name], dtype=torch.bool) for name in prunable}


def apply_masks(params: Params, masks: Masks) -> Params:
    """The params with every pruned weight exactly +0.0, by bool masks; leaves without a mask are shared, not copied.

    Raises UserError for a mask without a parameter.

    >>> lf.apply_masks({"w": torch.tensor([1.0, -2.0])}, {"w": torch.tensor([True, False])})
    {'w': tensor([1., 0.])}
    """
    try:
        if not masks.keys() <= params.keys():
            name = next(iter(masks.keys() - params.keys()))
            raise UserError(f"apply_masks: masks: {name!r} is not a parameter of this network ({', '.join(params)})")
        return {name: torch.where(masks[name], leaf, 0) if name in masks else leaf for name, leaf in params.items()}
    except (AttributeError, TypeError, RuntimeError):  # looked at only now, since every step comes here
        check_argument("apply_masks", "params", params, "Params")
        check_argument("apply_masks", "masks", masks, "Masks")
        raise


def masked_like(tree: T, masks: Masks) -> T:
    """A tree such as an optimiser's state, in which each leaf with the name and shape of a mask is masked."""

    def masked(path: tuple[Any, ...], leaf: Any) -> Any:
        mask = masks.get(path[-1]) if path else None
        if mask is None or not isinstance(leaf, Tensor) or leaf.shape != mask.shape:
            return leaf
        return torch.where(mask, leaf, 0)

    return optree.tree_map_with_path(masked, tree)  # type: ignore[arg-type,return-value]


class Count(NamedTuple):
    """The number of weights that remain (kept), and of all weights (total), in a leaf or a tree."""

    kept: int
    total: int

    @property
    def density(self) -> float:
        """kept / total, in [0, 1]; 1 where there is nothing to prune."""
        return self.kept / self.total if self.total else 1.0


@public
def layer_counts(masks: Masks) -> dict[str, Count]:
    """The exact number of weights that remain, and of all weights, in each layer of `masks`.

    >>> lf.layer_counts({"w": torch.tensor([True, False])})
    {'w': Count(kept=1, total=2)}
    """
    kept = as_numbers([mask.sum() for mask in masks.values()])
    return {name: Count(int(number), mask.numel()) for number, (name, mask) in zip(kept, masks.items(), strict=True)}


def as_numbers(scalars: Sequence[Tensor]) -> list[Any]:
    """Scalars of one device as Python numbers; the device is waited for once."""
    return torch.stack(list(scalars)).tolist() if scalars else []


@public
def count(masks: Masks) -> Count:
    """The exact number of weights that remain, and of all weights, over all layers of `masks`.

    >>> lf.count({"a": torch.tensor([True, False]), "b": torch.tensor([True])})
    Count(kept=2, total=3)
    """
    return whole(layer_counts(masks).values())


def whole(layers: Collection[Count]) -> Count:
    """The counts of layers as one."""
    return Count(sum(layer.kept for layer in layers), sum(layer.total for layer in layers))


@public
def density(masks: Masks) -> float:
    """The share of prunable weights that remain in `masks`, in [0, 1]; 1 where there is nothing to prune.

    >>> lf.density({"w": torch.tensor([True, False])})
    0.5
    """
    return count(masks).density
