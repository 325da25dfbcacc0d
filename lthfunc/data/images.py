"""Images of any source as tensors: decoded side by side, to one size, with broken ones named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lthfunc.errors import UserError, invalid

#: Told (images decoded, of how many).
Observe = Callable[[int, int], None]
#: Images under way at a time.
_CHUNK = 512


class Wanted(NamedTuple):
    """What images become. size: (height, width), or None where all have one; gray: one channel instead of three."""

    size: tuple[int, int] | None
    gray: bool


def size_option(size: int | str | None) -> tuple[int, int] | None:
    """``32`` or ``32x48`` (height x width). Raises UserError."""
    if size is None:
        return None
    try:
        height, _, width = str(size).partition("x")
        found = int(height), int(width or height)
    except ValueError:
        found = (0, 0)
    if min(found) < 1:
        raise invalid("--dataset-option", f"size={size}", "a number of pixels, or HEIGHTxWIDTH")
    return found


def wanted_of(first: Any, size: tuple[int, int] | None) -> Wanted:
    """Gray where the first image is."""
    return Wanted(size or first.size[::-1], first.mode in ("1", "L", "I;16", "I"))


def decoded(
    sources: Sequence[tuple[str, Callable[[], Any]]],
    wanted: Wanted,
    into: Tensor,
    *,
    skip_broken: bool,
    resize: bool,
    observe: Callable[[int], None],
) -> list[int]:
    """Write images (name, open) into uint8 (n, channels, height, width); returns the indices of broken ones.

    Raises UserError for the first broken one, unless they are to be skipped, and for one of another size, unless
    images are resized.
    """
    broken: list[int] = []

    def one(index: int) -> str | None:
        name, open_image = sources[index]
        try:
            image = open_image().convert("L" if wanted.gray else "RGB")
        except Exception as error:  # whatever a decoder raises
            return f"{name}: cannot be read as an image ({type(error).__name__})"
        if image.size[::-1] != wanted.size:
            if not resize:
                return (
                    f"{name}: is {image.height}×{image.width}, the first image {wanted.size[0]}×{wanted.size[1]}; "  # type: ignore[index]
                    f"--dataset-option size={wanted.size[0]} resizes all"  # type: ignore[index]
                )
            image = _resized(image, wanted)
        pixels = np.asarray(image, dtype=np.uint8)
        into[index] = torch.from_numpy(np.array(pixels[None] if wanted.gray else pixels.transpose(2, 0, 1)))
        return None

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(sources), _CHUNK):
            chunk = range(start, min(start + _CHUNK, len(sources)))
            for index, wrong in zip(chunk, pool.map(one, chunk), strict=True):
                if wrong is None:
                    continue
                if not skip_broken:
                    raise UserError(f"--dataset: {wrong}; --skip-broken leaves such images out")
                broken.append(index)
            observe(len(chunk))
    return broken


def _resized(image: Any, wanted: Wanted) -> Any:
    """Scaled so that it covers the wanted size, its middle cut out."""
    from PIL import ImageOps

    assert wanted.size is not None
    return ImageOps.fit(image, (wanted.size[1], wanted.size[0]))
