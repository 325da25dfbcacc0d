"""``lthfunc import``: checkpoints of other programs as safetensors files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from lthfunc.errors import UserError, invalid
from lthfunc.printable import counted

from .console import put, say

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def import_(
    file: Annotated[str, typer.Argument(help="Checkpoint: .pt, .pth, .bin, .ckpt, .npz or .safetensors.")],
    out: Annotated[
        str | None,
        typer.Option("--out", metavar="FILE", help="The new file. \\[default: FILE as .safetensors]"),
    ] = None,
    masks: Annotated[
        bool, typer.Option("--masks", help="FILE holds masks, of 0 and 1: of parameters or layers, or NAME_mask.")
    ] = False,
    max_size: Annotated[
        str,
        typer.Option("--max-size", metavar="SIZE", help="Refuse larger files, compressed or not: 500MB, 2GB."),
    ] = "4GB",
) -> None:
    """Convert another program's checkpoint to a safetensors file that `--weights` can start from.

    Only tensors are read (PyTorch's weights_only); a file that holds anything else is refused. Prefixes that
    DataParallel, torch.compile or Lightning add to names are removed, and reported. Masks (--masks) are for
    lf.ticket_from(module, "masks.safetensors").
    """
    path, most = Path(file), _bytes(max_size)
    if not path.exists():
        raise UserError(f"{file}: no such file")
    target = Path(out) if out else path.with_suffix(".safetensors")
    if target.suffix != ".safetensors":
        raise invalid("--out", str(target), "a name that ends in .safetensors")
    if target.exists():
        raise invalid("--out", str(target), "a file that doesn't exist yet")
    from lthfunc.models.checkpoint_reader import import_checkpoint
    from lthfunc.models.mask_files import read_masks
    from lthfunc.trees.files import save_tree
    from lthfunc.trees.ops import count

    tensors, notes = (read_masks if masks else import_checkpoint)(path, most)
    save_tree(target, tensors, {"source": path.name})
    for note in notes:
        say(note)
    if masks:
        kept = count(tensors)
        put(f"{target}: {counted(len(tensors), 'mask')}, {kept.kept:,} of {kept.total:,} weights remain")
    else:
        put(f"{target}: {counted(len(tensors), 'tensor')}, {sum(leaf.numel() for leaf in tensors.values()):,} numbers")


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,3})?) ?([KMG]B|)", text.upper())
    if found is None or not float(found[1]):
        raise invalid("--max-size", text, "a size, e.g. 500MB or 2GB")
    return int(float(found[1]) * _UNITS[found[2]])
