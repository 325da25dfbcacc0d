"""Text files, character by character."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lthfunc.data.reader_options import check_shares, check_whole, regular
from lthfunc.errors import UserError
from lthfunc.trees.types import Dataset, Split

#: The most distinct characters of an alphabet.
_MOST = 4096


def read_text(path: str, *, length: int = 64, val: float = 0.1, test: float = 0.1) -> Dataset:
    """A data set of ``text:FILE`` (UTF-8).

    Inputs (n, length) are characters' numbers, targets the characters that follow. The end of the file is the test
    split, and what precedes it the validation split: shares of the characters. The alphabet is that of the whole file,
    in order of code points, and is `Dataset.labels`.

    Raises UserError for a file that isn't text, or is too short.
    """
    check_whole(length=length)
    check_shares(val=val, test=test)
    try:
        text = regular(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is not UTF-8"
        raise UserError(f"--dataset: {path} cannot be read as text ({reason})") from error
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    alphabet, numbers = np.unique(points, return_inverse=True)
    if len(alphabet) > _MOST:
        raise UserError(f"--dataset: {path} has {len(alphabet)} different characters; at most {_MOST} are supported")
    ids = torch.from_numpy(numbers.astype(np.int64))
    first, second = round(len(ids) * (1 - val - test)), round(len(ids) * (1 - test))
    train, held, tested = (_windows(part, length) for part in (ids[:first], ids[first:second], ids[second:]))
    if not all(len(part.x) for part in (train, held, tested)):
        raise UserError(
            f"--dataset: {path} has {len(ids)} characters, too few for three splits of windows of {length} "
            "(--dataset-option length=N)"
        )
    labels = tuple(chr(point) for point in alphabet.tolist())
    return Dataset(Path(path).name, train, held, tested, classes=len(labels), labels=labels)


def _windows(ids: Tensor, length: int) -> Split:
    """Consecutive windows, each with itself shifted by one."""
    count = max(0, (len(ids) - 1) // length)
    return Split(ids[: count * length].view(count, length), ids[1 : count * length + 1].view(count, length))
