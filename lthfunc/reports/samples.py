"""A data set's examples as a picture and its classes as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table
from torch import Tensor

from lthfunc.reports.tables import plain_table
from lthfunc.trees.ops import scaled
from lthfunc.trees.types import Dataset

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Rows and columns of the picture, and classes of the table, at most.
_ROWS, _COLUMNS, _CLASSES = 10, 10, 40
#: Numbers of a window that are printed.
_TOKENS = 32


def can_be_drawn(data: Dataset) -> bool:
    """Whether inputs are images of one or three channels."""
    return len(data.shape) == 3 and data.shape[0] in (1, 3)


def sample_grid(data: Dataset) -> Figure:
    """Training images, a row per class, at most ten classes and ten images of each."""
    from lthfunc.reports.matplotlib_figures import images  # imports matplotlib

    split, classes = data.train, min(_ROWS, data.classes)
    known = split.y.ndim == 1 and not split.y.is_floating_point()
    rows = []
    for label in range(classes):
        chosen = (split.y == label).nonzero()[:, 0] if known else torch.arange(label, len(split.x), classes)
        pixels = [_pixels(split.x[index], data) for index in chosen[:_COLUMNS]]
        rows.append((_name(data, label) if known else "", pixels))
    of = f": training images of {classes} of {data.classes} classes" if known else ""
    return images(rows, [], data.name + of, size=0.6, cmap="gray" if data.shape[0] == 1 else None)


def class_table(data: Dataset) -> Table:
    """The number of examples per class and split; the most frequent first where there are many classes."""
    train = "train" if data.stream is None else f"first {len(data.train.x)}"
    table = plain_table("class", train, "val", "test", "share of training %")
    counts = torch.stack([
        torch.bincount(split.y.flatten().cpu(), minlength=data.classes)[: data.classes]  # pixels may have none
        for split in (data.train, data.val, data.test)
    ])  # fmt: skip
    order = torch.arange(data.classes) if data.classes <= _CLASSES else counts[0].argsort(descending=True)[:_CLASSES]
    for label in order.tolist():
        numbers = counts[:, label].tolist()
        share = 100 * numbers[0] / max(1, int(counts[0].sum()))
        table.add_row(_name(data, label), *(f"{number:,}" for number in numbers), f"{share:.2f}")
    if data.classes > _CLASSES:
        table.add_row(f"… {data.classes - _CLASSES} more")
    return table


def sample_lines(data: Dataset, count: int = 5) -> list[str]:
    """The first windows of a text; numbers for tokens without names."""
    if not data.labels:
        return [" ".join(map(str, row.flatten().tolist()[:_TOKENS])) for row in data.train.x[:count]]
    return ["".join(data.labels[i] for i in row.tolist()) for row in data.train.x[:count]]


def _name(data: Dataset, label: int) -> str:
    return repr(data.class_name(label))[1:-1]  # a line break is a character of a text


def _pixels(image: Tensor, data: Dataset) -> Any:
    """An image as matplotlib takes it, (height, width) or (height, width, 3) in [0, 1]."""
    pixels = image.float() if image.dtype == torch.uint8 else scaled(image[None], data.scale)[0]
    low, high = pixels.min(), pixels.max()
    pixels = pixels / 255 if image.dtype == torch.uint8 else (pixels - low) / (high - low).clamp(min=1e-9)
    return pixels.permute(1, 2, 0).squeeze(-1).cpu().numpy()
