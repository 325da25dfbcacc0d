"""``lthfunc archs`` and ``lthfunc datasets``."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from lthfunc.data.catalog import DATA_DIR_VARIABLE, DATASETS, default_data_dir
from lthfunc.models.catalog import ARCHS


def archs() -> None:
    """List the networks, with the settings they are trained with unless you say otherwise."""
    table = Table(header_style="bold", box=None, pad_edge=False)
    for head in ("name", "also", "what it is", "least image", "optimizer", "lr", "batch"):
        table.add_column(head)
    for arch in ARCHS.values():
        recipe = arch.recipe
        least = f"{arch.min_side}×{arch.min_side}" if arch.min_side > 1 else "any"
        extra = f" {recipe.momentum:g}" if recipe.momentum else ""
        table.add_row(
            f"[bold]{arch.name}", ", ".join(arch.aliases), arch.about, least,
            f"{recipe.optimizer}{extra}", f"{recipe.lr:g}", str(recipe.batch_size),
        )  # fmt: skip
    Console().print(table)
    print("Your own: --arch package.module:function, called with (shape, classes), returning an nn.Module.")


def datasets() -> None:
    """List the data sets and where they are looked for."""
    table = Table(header_style="bold", box=None, pad_edge=False)
    for head in ("name", "what it is", "shape", "classes", "train / val / test", "epochs", "network"):
        table.add_column(head)
    for known in DATASETS.values():
        table.add_row(
            f"[bold]{known.name}", known.about, "×".join(map(str, known.shape)), str(known.classes),
            f"{known.train:,} / {known.val:,} / {known.test:,}", str(known.epochs),
            "not needed" if known.offline else "first use",
        )  # fmt: skip
    Console().print(table)
    print(f"Looked for in {default_data_dir()} (change it with --data-dir or {DATA_DIR_VARIABLE}).")
    print("Your own: --dataset package.module:function, returning lthfunc.data.from_tensors(...).")
