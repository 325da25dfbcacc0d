"""Examples that come one after the other, in unknown number, as tensors in temporary files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lthfunc.data.examples import Example
from lthfunc.data.images import Observe
from lthfunc.errors import UserError
from lthfunc.trees.ops import raw_bytes


@contextmanager
def spooled(examples: Iterator[Example], folder: Path, split: str, observe: Observe | None) -> Iterator[Example]:
    """All examples at once, mapped from files below a folder, which are gone after the block.

    observe: called with (how many, 0), the total being unknown. Raises UserError where there is none.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=".spool-") as place:
        paths = [Path(place) / part for part in "xy"]
        first, count = None, 0
        with paths[0].open("wb") as x_file, paths[1].open("wb") as y_file:
            for found in examples:
                first = first or found
                for file, part in ((x_file, found.x), (y_file, found.y)):
                    file.write(raw_bytes(part).numpy().data)
                count += len(found.x)
                if observe is not None:
                    observe(count, 0)
        if first is None:
            raise UserError(f"{split}: no examples")
        x, y = (_mapped(path, part, count) for path, part in zip(paths, (first.x, first.y), strict=True))
        yield Example(x, y, first.parts)


def _mapped(path: Path, part: Tensor, count: int) -> Tensor:
    shape = (count, *part.shape[1:])
    storage: Any = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(part.dtype).view(shape)
