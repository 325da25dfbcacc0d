"""How many bytes a ticket takes as a file."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path

import safetensors.torch

from lthfunc.deployment.export.packed import entropy_bytes, save_packed
from lthfunc.trees.ops import apply_masks
from lthfunc.trees.types import Ticket

_DENSE = "dense, float32"


def sizes(ticket: Ticket) -> list[tuple[str, int]]:
    """(what, bytes): the dense file first, then it under gzip, ours, and the least that positions and values take."""
    masked = {**apply_masks(ticket.params, ticket.masks), **ticket.buffers}
    payload = safetensors.torch.save({name: leaf.detach().cpu().contiguous() for name, leaf in masked.items()})
    kept = sum(int(mask.sum()) for mask in ticket.masks.values())
    rest = sum(leaf.nbytes for name, leaf in masked.items() if name not in ticket.masks)
    bound = round(entropy_bytes(ticket.masks) + rest)
    return [
        (_DENSE, len(payload)),
        ("gzip of that", len(gzip.compress(payload))),
        ("packed, float32", _packed(ticket, half=False)),
        ("its bound: entropy of the positions, values, the rest", bound + 4 * kept),
        ("packed, float16", _packed(ticket, half=True)),
    ]


def _packed(ticket: Ticket, *, half: bool) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "packed.safetensors"
        save_packed(path, ticket, half=half)
        return path.stat().st_size
