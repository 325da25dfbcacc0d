"""``lthfunc archs`` and ``lthfunc datasets``."""

from __future__ import annotations

from rich.table import Table

from lthfunc.data.catalog import DATA_DIR_VARIABLE, DATASETS, default_data_dir
from lthfunc.models.catalog import ALIASES, ARCHS

from .console import screen


def archs() -> None:
    """List the networks, with the settings they are trained with unless you say otherwise."""
    table = Table(header_style="bold", box=None, pad_edge=False)
    for head in ("name", "what it is", "min image", "trained with"):
        table.add_column(head)
    for arch in ARCHS.values():
        recipe = arch.recipe
        least = f"{arch.min_side}×{arch.min_side}" if arch.min_side > 1 else "any"
        table.add_row(arch.name, arch.about, least, f"{recipe.optimizer} {recipe.lr:g}, batch {recipe.batch_size}")
    screen().print(table)
    print(f"Also: {', '.join(ALIASES)}.")
    print("By name: torchvision:NAME and timm:NAME.")
    print("Your own: --arch package.module:function or path/to/file.py:name; it is given what its signature accepts of")
    print("shape or input_shape, and classes or num_classes, and --arch-option NAME=VALUE, and returns an nn.Module.")


def datasets() -> None:
    """List the data sets and where they are looked for."""
    table = Table(header_style="bold", box=None, pad_edge=False)
    for head in ("name", "what it is", "input", "classes", "train/val/test", "epochs"):
        table.add_column(head)
    for known in DATASETS.values():
        table.add_row(
            known.name,
            known.about,
            "×".join(map(str, known.shape)),
            str(known.classes),
            f"{known.train}/{known.val}/{known.test}",
            str(known.epochs),
        )
    screen().print(table)
    print(f"Looked for in {default_data_dir()}")
    print(f"or where --data-dir or {DATA_DIR_VARIABLE} says, and downloaded there on first use.")
    print("Your own: --dataset package.module:function; it is called without arguments")
    print("and returns lthfunc.data.from_tensors(...).")
