"""Texts of the package `datasets`, as windows of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lthfunc.data.images import Observe
from lthfunc.data.tokens import Windows, bytes_of_texts, of_rows, tokenizer_at
from lthfunc.errors import UserError
from lthfunc.trees.types import Dataset

#: Texts that are encoded at a time.
_BATCH = 1000


def read_texts(
    name: str, splits: Mapping[str, Any], column: str, tokenizer: str | None, given: Windows, observe: Observe | None
) -> Dataset:
    """The texts in a column of a data set's splits: each split is one row of tokens, cut into windows.

    tokenizer: as of `tokenizer_at`; None for bytes. Raises UserError for a row that holds no text, and for too few.
    """
    tokens = bytes_of_texts() if tokenizer is None else tokenizer_at(tokenizer)
    total, done = sum(map(len, splits.values())), 0
    rows = {}
    for part, split in splits.items():
        texts = split.select_columns([column])  # images beside them need no decoding
        rows[part] = tokens.row(_texts(name, part, texts, column, observe, done, total))
        done += len(split)
    given = given._replace(unit="bytes" if tokenizer is None else "tokens")
    return of_rows(short_name(name), f"'hf:{name}'", rows, tokens.labels, given)


def short_name(name: str) -> str:
    """What a data set of a user's or of a folder is called."""
    return name.rstrip("/").rpartition("/")[2]


def _texts(
    name: str, part: str, split: Any, column: str, observe: Observe | None, done: int, total: int
) -> Iterator[Sequence[str]]:
    for start in range(0, len(split), _BATCH):
        texts = split[start : start + _BATCH][column]
        for place, text in enumerate(texts, start):
            if not isinstance(text, str):
                raise UserError(
                    f"dataset: 'hf:{name}' has {text!r} in its column {column!r} (example {place} of {part}), no text"
                )
        yield texts
        if observe is not None:
            observe(done + start + len(texts), total)
