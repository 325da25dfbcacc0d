"""Accuracy per class, since the mean over all examples hides rare classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from rich.table import Table

from lthfunc.errors import UserError
from lthfunc.reports.tables import plain_table
from lthfunc.training.evaluation import chunk_for
from lthfunc.trees.model import Model, apply_evaluating
from lthfunc.trees.ops import scaled
from lthfunc.trees.outputs import prediction
from lthfunc.trees.types import Dataset, Ticket


class ClassRow(NamedTuple):
    """A class. training, examples: the number of training and of validation examples. right: accuracy by network."""

    name: str
    training: int | None
    examples: int
    right: dict[str, float | None]


def per_class(model: Model, networks: Mapping[str, Ticket], data: Dataset) -> list[ClassRow]:
    """Measured on the validation split, in eager mode; None where it has no example of a class.

    Raises UserError for targets that are no classes, one an example.
    """
    if data.val.y.is_floating_point() or data.val.y.ndim != 1:
        raise UserError("--classes: works on data sets with a class for each example")
    known = data.stream is None
    seen = torch.bincount(data.train.y.cpu(), minlength=data.classes).tolist() if known else [None] * data.classes
    there = torch.bincount(data.val.y.cpu(), minlength=data.classes).tolist()
    right = {name: _right(model, ticket, data) for name, ticket in networks.items()}
    return [
        ClassRow(
            data.class_name(label),
            seen[label],
            there[label],
            {name: hits[label] / there[label] if there[label] else None for name, hits in right.items()},
        )
        for label in range(data.classes)
    ]


def class_rows(rows: list[ClassRow]) -> Table:
    """A table with the mean over classes at its end."""
    table = plain_table("class", "training", "validation", *(f"{name} acc %" for name in rows[0].right))
    for row in rows:
        table.add_row(row.name, _number(row.training), f"{row.examples:,}", *map(_percent, row.right.values()))
    means = []
    for name in rows[0].right:
        known = [value for row in rows if (value := row.right[name]) is not None]
        means.append(_percent(sum(known) / len(known) if known else None))
    training = [row.training for row in rows if row.training is not None]
    total = [_number(sum(training) if training else None), f"{sum(row.examples for row in rows):,}"]
    table.add_row("mean over classes", *total, *means, style="bold")
    return table


def _right(model: Model, ticket: Ticket, data: Dataset) -> list[int]:
    hits = torch.zeros(data.classes, dtype=torch.int64)
    chunk = chunk_for(1)
    with torch.no_grad():
        for x, y in zip(torch.split(data.val.x, chunk), torch.split(data.val.y, chunk), strict=True):
            outputs = prediction(apply_evaluating(model, ticket.params, ticket.buffers, scaled(x, data.scale)))
            hits += torch.bincount(y[outputs.argmax(1) == y].cpu(), minlength=data.classes)
    return [int(each) for each in hits]


def _number(count: int | None) -> str:
    return "–" if count is None else f"{count:,}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"
