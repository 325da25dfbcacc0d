"""Text files, by characters or a tokenizer's tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from lthfunc.data.reader_options import check_shares, check_whole, regular
from lthfunc.data.tokens import Windows, of_rows, tokenizer_at
from lthfunc.errors import UserError
from lthfunc.trees.types import Dataset

#: The most distinct characters of an alphabet.
_MOST = 4096


def read_text(
    path: str, *, length: int = 64, val: float = 0.1, test: float = 0.1, tokenizer: str | None = None
) -> Dataset:
    """A data set of ``text:FILE`` (UTF-8).

    Inputs (n, length) are numbers of characters, or of a tokenizer's tokens, targets what follows each. The end of the
    file is the test split, and what precedes it the validation split: shares of the characters or tokens. The alphabet
    is that of the whole file, in order of code points; it or the vocabulary is `Dataset.labels`.

    Raises UserError for a file that isn't text, or is too short, and for a tokenizer that cannot be read.
    """
    check_whole(length=length)
    check_shares(val=val, test=test)
    try:
        text = regular(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is not UTF-8"
        raise UserError(f"dataset: {path} cannot be read as text ({reason})") from error
    if tokenizer is not None:
        tokens, unit = tokenizer_at(tokenizer), "tokens"
        numbers, labels = tokens.numbers([text])[0], tokens.labels
    else:
        points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        alphabet, numbers = np.unique(points, return_inverse=True)
        if len(alphabet) > _MOST:
            raise UserError(f"dataset: {path} has {len(alphabet)} different characters; at most {_MOST} are supported")
        labels, unit = tuple(chr(point) for point in alphabet.tolist()), "characters"
    row = torch.from_numpy(numbers.astype(np.int64))
    return of_rows(Path(path).name, path, {"train": row}, labels, Windows(length, val, test, unit))
