"""``lthfunc archs``, ``lthfunc datasets`` and ``lthfunc recipes``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from lthfunc.catalog.data_sets import DATA_DIR_VARIABLE, DATASETS, FILE_KINDS, canonical, default_data_dir
from lthfunc.catalog.networks import ALIASES, NETWORKS
from lthfunc.catalog.recipes import RECIPES
from lthfunc.errors import invalid

from . import options as o
from .console import put_json, put_parts, screen

if TYPE_CHECKING:  # imports torch
    from .network_counts import Counted

#: Least width of what a name is, unless no other column can be left out.
_LEAST = 28

datasets = typer.Typer(
    subcommand_metavar="[COMMAND]",
    help="List the data sets; `show NAME` describes one.",
    invoke_without_command=True,
    add_completion=False,
)


@o.with_settings("archs")
def archs(
    given: o.Given,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Networks to list, also torchvision:NAME, timm:NAME or your own."),
    ] = None,
    dataset: Annotated[
        str | None, o.option("--dataset", "Count for the inputs and classes of this data set.", "NAME")
    ] = None,
    shape: Annotated[str, o.option("--input", "Count for inputs of this shape.", "CxHxW")] = "3x32x32",
    classes: Annotated[int, o.whole_number("--classes", "Number of outputs.")] = 10,
    json: o.Json = False,
) -> None:
    """List the networks: parameters, weights to prune, and FLOPs for an input, and how they are trained."""
    chosen, size = _input_of(dataset, shape, classes)
    from .network_counts import counted  # imports torch

    found = [counted(name, chosen, size, given.get("arch_option", {})) for name in names or NETWORKS]
    if json:
        put_json([item._asdict() for item in found])
        return
    heads = ("name", "parameters", "to prune", "MFLOPs", "least", "trained with", "what it is")
    rows = [(name, *_counts(item), *rest) for item in found for name, *rest in [_about(item.name)]]
    short = ", ".join(alias for alias in ALIASES if "-" not in alias)
    listing(
        heads,
        rows,
        f"Counted for inputs {_times(chosen)} and {size} classes, and for text 64 characters from an alphabet of 65; "
        "--input, --classes and --dataset count for others. FLOPs: of a forward pass of one example. Training: an "
        f"optimiser at a rate · batch size. Also: {short}, and names with a hyphen (resnet-20).",
        "By name: torchvision:NAME and timm:NAME.",
        "Your own: --arch module:function or path/to/file.py:name; it is given what its signature accepts of "
        "shape or input_shape, and classes or num_classes, and --arch-option NAME=VALUE, and returns an nn.Module.",
        spare=("parameters", "least"),
    )


def listing(heads: Sequence[str], rows: Iterable[Sequence[str | Text]], *notes: str, spare: Sequence[str] = ()) -> None:
    """Print a table, of which "what it is" is wrapped between words, and notes below it.

    spare: columns that are left out on a screen that has no room for them, the first one first.
    """
    console = screen()
    columns = {head: column for head, *column in zip(heads, *rows, strict=True)}
    widths = {head: max(map(len, (head, *column))) for head, column in columns.items()}
    widths["what it is"] = _LEAST
    for head in spare:
        if sum(widths.values()) + 2 * len(widths) > console.width:
            del widths[head]
    table = Table(header_style="bold", box=None, pad_edge=False)
    for head, width in widths.items():
        numbers, wraps = all(not str(cell).strip("0123456789,.–") for cell in columns[head]), head == "what it is"
        table.add_column(
            head, justify="right" if numbers else "left", no_wrap=not wraps, min_width=None if wraps else width
        )
    for row in zip(*(columns[head] for head in widths), strict=True):
        table.add_row(*row)
    left = ", ".join(head for head in heads if head not in widths)
    put_parts(table, *notes, *([f"A wider screen also shows: {left}."] if left else ()))


def _input_of(dataset: str | None, shape: str, classes: int) -> tuple[tuple[int, ...], int]:
    if dataset is not None:
        name = canonical(dataset)
        if name not in DATASETS:
            raise invalid("--dataset", dataset, f"one of {', '.join(DATASETS)}")
        return DATASETS[name].shape, DATASETS[name].classes
    try:
        sides = tuple(int(side) for side in shape.split("x"))
    except ValueError:
        sides = (0,)
    if min(sides) < 1:
        raise invalid("--input", shape, "numbers separated by x, e.g. 3x32x32")
    o.check_least(("--classes", classes, 1))
    return sides, classes


def _about(name: str) -> tuple[str, str, str, str]:
    name = ALIASES.get(name, name)
    arch = NETWORKS.get(name)
    if arch is None:
        return name, "", "", ""
    recipe = arch.recipe
    least = {"text": "text", "numbers": "any"}.get(arch.inputs, f"{arch.min_side}×{arch.min_side}")
    return name, least, f"{recipe.optimizer} {recipe.lr:g} · {recipe.batch_size}", arch.about


def _counts(item: Counted) -> tuple[str, str, str]:
    if item.reason is not None:
        return "–", "–", "–"
    return f"{item.parameters:,}", f"{item.prunable:,}", f"{item.flops / 1e6:,.1f}"


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


@datasets.callback()
def list_datasets(context: typer.Context) -> None:
    """List the data sets, and the folder in which they are looked for."""
    if context.invoked_subcommand is not None:
        return
    heads = ("name", "what it is", "input", "classes", "train/val/test", "epochs")
    rows = [
        (name, each.about, _times(each.shape), str(each.classes), "/".join(map(str, each.examples)), str(each.epochs))
        for name, each in DATASETS.items()
    ]
    listing(
        heads,
        rows,
        f"They are looked for in {default_data_dir()}, or in the folder that --data-dir or {DATA_DIR_VARIABLE} names, "
        "and are downloaded there on first use (except tinyimagenet).",
        "By kind:",
        *(f"  {name}, {entry.about}" for name, entry in FILE_KINDS.items()),
        "  NAME.safetensors, a file written by lthfunc.data.save_mapped",
        "Your own: --dataset module:function or path/to/file.py:name; it is given --dataset-option NAME=VALUE "
        "and returns lthfunc.data.from_tensors(...), a data set of PyTorch or a DataLoader.",
    )


@datasets.command("show")
@o.with_settings("datasets show")
def show(
    name: Annotated[str, typer.Argument(help="A data set, as for --dataset.")],
    given: o.Given,
    out: Annotated[str | None, o.option("--out", "Also draw examples, into this PNG or SVG file.", "FILE")] = None,
) -> None:
    """Describe a data set: files, splits, classes, normalisation."""
    from .dataset_summary import show_dataset

    show_dataset(name, out, **given)


def recipes() -> None:
    """List the recipes: settings of papers that --recipe fills in."""
    rows = []
    for name, recipe in RECIPES.items():
        settings = "  ".join(f"{key}={value}" for key, value in recipe.settings.items())
        source = f" ({recipe.source})" if recipe.source else ""
        rows.append((name, Text.assemble(recipe.about, source, "\n", (settings, "dim"))))
    listing(("name", "what it is"), rows)
