"""Selection: which weights remain. Scores, masks and counts in, masks out; and checks of masks for a structure.

`unstructured` selects single weights. The makers of structures, which hardware can use, return such a
``select(scores, masks, keep)``; layers that match a pattern of `exempt` are selected without structure. A leaf is seen
as a matrix (outputs, inputs); a convolution's inputs are (kernel position, channel), channels innermost, so that
neighbours along a row are neighbouring channels.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.errors import UserError, invalid
from lthfunc.sparsify.allocation import KeepCounts
from lthfunc.sparsify.ranking import best, ranks, ranks_in_rows
from lthfunc.sparsify.scores import Scores
from lthfunc.trees.patterns import check_patterns
from lthfunc.trees.types import Masks

Select = Callable[[Scores, Masks, KeepCounts], Masks]
#: One layer's (scores, mask, keep) -> its new mask.
LayerSelect = Callable[[str, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class LayerByLayer:
    """A selection that looks at one layer at a time; those that match a pattern are selected without structure.

    Of all layers, which a call of it gets, each pattern must match one; `among` takes a part of them.
    """

    select: LayerSelect
    exempt: tuple[str, ...]

    def __call__(self, scores: Scores, masks: Masks, keep: KeepCounts) -> Masks:
        check_patterns("exempt", self.exempt, masks)
        return self.among(scores, masks, keep)

    def among(self, scores: Scores, masks: Masks, keep: KeepCounts) -> Masks:
        """The selection from a part of the layers, in which a pattern may match none. Returns the new masks."""
        free = {name for name in masks if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.exempt)}
        plain = unstructured(scores, {name: masks[name] for name in free}, keep)
        return {
            name: plain[name] if name in free else self.select(name, scores[name], mask, keep[name].to(mask.device))
            for name, mask in masks.items()
        }


@public
def unstructured(scores: Scores, masks: Masks, keep: KeepCounts) -> Masks:
    """Select the best `keep` of the remaining weights in each layer; the new masks nest in the old ones.

    Exactly min(keep, remaining) weights remain. Among equal scores the lower flat index wins, so the same trees give
    the same masks on every device. Returns the new masks.

    >>> scores, masks = {"w": torch.tensor([3.0, 1.0, 2.0])}, {"w": torch.tensor([True, True, False])}
    >>> lf.unstructured(scores, masks, {"w": torch.tensor(1)})
    {'w': tensor([ True, False, False])}
    """
    return {name: best(scores[name], mask, keep[name].to(mask.device)) for name, mask in masks.items()}


@public
def n_of_m(n: int, m: int, exempt: Sequence[str] = ()) -> Select:
    """Select at most `n` of every `m` consecutive inputs of an output (2:4: Mishra et al. 2021).

    exempt: name patterns of layers to select without structure. Returns a selection. Raises UserError, when it is
    applied, where m doesn't divide a layer's inputs (the input channels of a convolution), or fewer weights fit than
    are to be kept.

    >>> state = lf.init(lf.from_module(nn.Linear(8, 2)))
    >>> pruned = lf.prune(density=0.5, allocate=lf.uniform(), select=lf.n_of_m(2, 4))(state)
    >>> lf.has_n_of_m(pruned.masks["weight"], 2, 4)
    True
    """
    if not 0 < n <= m:
        raise invalid("structure", f"{n}:{m}", "N:M with 1 ≤ N ≤ M")

    def select(name: str, scores: Tensor, mask: Tensor, keep: Tensor) -> Tensor:
        matrix, living = as_matrix(scores), as_matrix(mask)
        _check_divides(name, mask, f"{n}:{m}", m, "inputs", mask.shape[1] if mask.ndim > 1 else 1)
        grouped = ranks_in_rows(matrix.reshape(-1, m), living.reshape(-1, m))
        allowed = (grouped < n).view(living.shape) & living
        if bool(allowed.sum() < keep):
            raise UserError(
                f"structure: {n}:{m} holds at most {int(allowed.sum()):,} of the {mask.numel():,} weights of {name}, "
                f"but {int(keep):,} are to be kept; choose a density of {n / m:g} or less, the same in all layers"
            )
        return from_matrix(best(matrix, allowed, keep), mask.shape)

    return LayerByLayer(select, tuple(exempt))


@public
def blocks(rows: int, columns: int, exempt: Sequence[str] = ()) -> Select:
    """Select whole blocks of `rows` outputs by `columns` inputs, the best by the sum of their scores.

    As many blocks as come closest to the number of weights to keep. exempt: name patterns of layers to select without
    structure. Returns a selection. Raises UserError for a block that doesn't divide a layer.

    >>> state = lf.init(lf.from_module(nn.Linear(8, 4)))
    >>> pruned = lf.prune(density=0.5, select=lf.blocks(2, 4))(state)
    >>> lf.has_blocks(pruned.masks["weight"], 2, 4)
    True
    """
    if rows < 1 or columns < 1:
        raise invalid("structure", f"{rows}x{columns}", "a block of at least 1x1")

    def select(name: str, scores: Tensor, mask: Tensor, keep: Tensor) -> Tensor:
        structure = f"{rows}x{columns}"
        matrix, living = as_matrix(scores), as_matrix(mask)
        _check_divides(name, mask, structure, rows, "outputs", living.shape[0])
        _check_divides(name, mask, structure, columns, "inputs", living.shape[1])
        tiles = _tiled(torch.where(living, matrix.double(), 0), rows, columns)
        alive = _tiled(living, rows, columns).flatten(2).any(2)
        count = torch.round(keep.double() / (rows * columns)).long()
        chosen = best(tiles.flatten(2).sum(2), alive, count)
        wide = chosen.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        return from_matrix(wide & living, mask.shape)

    return LayerByLayer(select, tuple(exempt))


@public
def units(exempt: Sequence[str] = ()) -> Select:
    """Select whole outputs (neurons, or channels of a convolution), the best by the mean of their scores.

    As many as come closest to the number of weights to keep, but at least one. What then has no reader or no source is
    pruned by `without_dead_units`. exempt: name patterns of layers to select without structure, such as the output
    layer, whose units are the classes. Returns a selection.

    >>> pruned = lf.prune(density=0.5, select=lf.units())(lf.init(lf.from_module(nn.Linear(8, 4))))
    >>> lf.dead_units(pruned.masks)
    {'weight': 2}
    """

    def select(name: str, scores: Tensor, mask: Tensor, keep: Tensor) -> Tensor:
        living = mask.flatten(1)
        alive = living.any(1)
        each = living.sum(1).double()
        total = torch.where(living, scores.flatten(1).double(), 0).sum(1)
        order = ranks(total / each.clamp(min=1), alive).argsort()
        # Outputs may have lost single weights before: take the number that comes closest to `keep`.
        held = each[order].cumsum(0)
        last = (held - keep).abs().argmin()
        chosen = torch.zeros_like(alive).scatter(0, order, torch.arange(len(order), device=order.device) <= last)
        return mask & chosen.view(-1, *(1,) * (mask.ndim - 1))

    return LayerByLayer(select, tuple(exempt))


@public
def per_output(exempt: Sequence[str] = ()) -> Select:
    """Select the same number of weights for every output, as nearly as `keep` allows (Sun et al. 2024, sec. 3).

    The first outputs get one more where the number doesn't divide; outputs with fewer weights left keep them all.
    exempt: name patterns of layers to select without structure. Returns a selection.

    >>> pruned = lf.prune(density=0.5, select=lf.per_output())(lf.init(lf.from_module(nn.Linear(8, 4))))
    >>> pruned.masks["weight"].sum(1)
    tensor([4, 4, 4, 4])
    """

    def select(name: str, scores: Tensor, mask: Tensor, keep: Tensor) -> Tensor:
        living = mask.flatten(1)
        order = ranks_in_rows(scores.flatten(1), living)
        # The best weight of each row first, then the second best of each row, and so on.
        turn = order * len(order) + torch.arange(len(order), device=order.device)[:, None]
        return best(-turn, living, keep).view(mask.shape)

    return LayerByLayer(select, tuple(exempt))


@public
def has_n_of_m(mask: Tensor, n: int, m: int) -> bool:
    """Whether at most `n` of every `m` consecutive inputs of a layer's mask remain. Raises UserError for an m below 1.

    >>> lf.has_n_of_m(torch.tensor([[True, False, True, False]]), 2, 4)
    True
    """
    matrix = as_matrix(mask)
    return matrix.shape[1] % m == 0 and bool((matrix.reshape(-1, m).sum(1) <= n).all())


@public
def has_blocks(mask: Tensor, rows: int, columns: int) -> bool:
    """Whether each block of `rows` outputs by `columns` inputs of a layer's mask is whole or empty.

    Raises UserError for an empty block.

    >>> lf.has_blocks(torch.tensor([[True, True, False, False]]), 1, 2)
    True
    """
    if rows < 1 or columns < 1:
        raise invalid("block", f"{rows}x{columns}", "a block of at least 1x1")
    matrix = as_matrix(mask)
    if matrix.shape[0] % rows or matrix.shape[1] % columns:
        return False
    each = _tiled(matrix, rows, columns).flatten(2).sum(2)
    return bool(((each == 0) | (each == rows * columns)).all())


@public
def has_units(mask: Tensor) -> bool:
    """Whether each output of a layer's mask is whole or empty.

    >>> lf.has_units(torch.tensor([[True, True], [False, False]]))
    True
    """
    each = mask.flatten(1).sum(1)
    return bool(((each == 0) | (each == mask[0].numel())).all())


def as_matrix(leaf: Tensor) -> Tensor:
    """(outputs, inputs), channels innermost."""
    return leaf.flatten(2).transpose(1, 2).flatten(1) if leaf.ndim > 2 else leaf.reshape(len(leaf), -1)


def from_matrix(matrix: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of `as_matrix`."""
    if len(shape) < 3:
        return matrix.reshape(tuple(shape))
    return matrix.view(shape[0], -1, shape[1]).transpose(1, 2).reshape(tuple(shape))


def _tiled(matrix: Tensor, rows: int, columns: int) -> Tensor:
    """(block rows, block columns, rows, columns)."""
    return matrix.reshape(matrix.shape[0] // rows, rows, matrix.shape[1] // columns, columns).transpose(1, 2)


def _check_divides(name: str, mask: Tensor, structure: str, size: int, what: str, count: int) -> None:
    if count % size:
        raise UserError(
            f"structure: {structure} doesn't divide the {count} {what} of {name} {tuple(mask.shape)}; "
            f"exempt the layer ({name!r})"
        )
