"""Gradients of all weights of a layer, pruned ones among them: instructions beside a program."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lthfunc.sparse.builder import Builder
from lthfunc.sparse.kernels.instructions import WHOLE
from lthfunc.sparse.tile_buffers import VECTOR_BYTES


def gradients_of_rows(
    b: Builder, places: dict[str, int], reads: Tensor, rows: Tensor, *, columns: int, groups: int = 1, across: int = 0
) -> Any:
    """Of weights row after row, `columns` in each.

    places: columns of an instruction, of what is read (in) and of the gradient (grad), with ny and nx. reads: vectors
    from a position to what each weight of the first row reads, for each group of rows. rows: vectors to the gradient of
    each row. across: as of `ProductLowering`.
    """
    return "largest_gradients", WHOLE, len(rows), {
        **places, "starts": b.table(torch.tensor([0, columns])), "offsets": b.table(reads * VECTOR_BYTES),
        "columns": columns, "groups": groups, "row_grad": b.table(rows), "across": across,
    }  # fmt: skip
