"""``lthfunc import``: checkpoints of other programs as safetensors files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from lthfunc.errors import UserError, invalid

from .console import put, say

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def import_(
    file: Annotated[str, typer.Argument(help="A checkpoint: .pt, .pth, .bin, .ckpt or .safetensors.")],
    out: Annotated[
        str | None,
        typer.Option("--out", metavar="FILE", help="\\[default: beside it, with the ending .safetensors]"),
    ] = None,
    max_size: Annotated[
        str, typer.Option("--max-size", metavar="SIZE", help="Refuse what is larger, packed or unpacked: 500MB, 2GB.")
    ] = "4GB",
) -> None:
    """Write another program's checkpoint as a safetensors file, for `--weights` to start from.

    Only tensors are read (PyTorch's weights_only); a file that holds anything else is refused. What DataParallel,
    torch.compile or Lightning put before the names is taken away, and said.
    """
    path, most = Path(file), _bytes(max_size)
    if not path.exists():
        raise UserError(f"{file}: there is no such file")
    target = Path(out) if out else path.with_suffix(".safetensors")
    if target.suffix != ".safetensors":
        raise invalid("--out", str(target), "a name that ends in .safetensors")
    if target.exists():
        raise invalid("--out", str(target), "a file that is not there yet")
    from lthfunc.models.foreign import read_foreign
    from lthfunc.trees.files import save_tree

    tensors, notes = read_foreign(path, most)
    save_tree(target, tensors, {"source": path.name})
    for note in notes:
        say(note)
    put(f"{target}: {len(tensors)} tensors, {sum(leaf.numel() for leaf in tensors.values()):,} numbers")


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,3})?) ?([KMG]B|)", text.upper())
    if found is None or not float(found[1]):
        raise invalid("--max-size", text, "a size, e.g. 500MB or 2GB")
    return int(float(found[1]) * _UNITS[found[2]])
