"""Masks as bits: 32 weights of a row in a word, the first in its lowest bit."""

from __future__ import annotations

import torch
from torch import Tensor

from lthfunc.errors import UserError

#: Weights in a word.
WORD = 32


def words(columns: int) -> int:
    """How many words a row of `columns` weights takes."""
    return -(-columns // WORD)


def pack_bits(mask: Tensor) -> Tensor:
    """A mask as bits, an eighth of its memory.

    mask: bool (..., columns), on any device. Returns int32 (..., words): weight i of a row is bit i % 32 of its word
    i // 32; bits past the last weight are 0. Raises UserError for a mask that isn't bool, or a single number.

    >>> pack_bits(torch.tensor([[True, False, True]]))
    tensor([[5]], dtype=torch.int32)
    """
    if mask.dtype != torch.bool or not mask.ndim:
        raise UserError(f"mask: takes bools of one dimension or more, not {mask.dtype} of shape {tuple(mask.shape)}")
    columns = mask.shape[-1]
    whole = torch.nn.functional.pad(mask, (0, words(columns) * WORD - columns))
    places = torch.arange(WORD, device=mask.device)
    found = (whole.reshape(*mask.shape[:-1], words(columns), WORD).long() << places).sum(-1)
    return torch.where(found >= 2 ** (WORD - 1), found - 2**WORD, found).int()  # bit 31 is an int32's sign


def unpack_bits(bits: Tensor, columns: int) -> Tensor:
    """The mask that was packed: ``unpack_bits(pack_bits(mask), mask.shape[-1])`` is it again.

    bits: int32 (..., words). columns: how many weights a row has. Returns bool (..., columns). Raises UserError where
    the bits don't have the words of `columns` weights, or aren't int32.
    """
    if bits.dtype != torch.int32 or not bits.ndim or bits.shape[-1] != words(columns):
        expected = f"int32 of {words(columns)} words a row for {columns} weights"
        raise UserError(f"bits: takes {expected}, not {bits.dtype} of shape {tuple(bits.shape)}")
    places = torch.arange(WORD, device=bits.device, dtype=torch.int32)
    return ((bits[..., None] >> places) & 1).bool().flatten(-2)[..., :columns]
