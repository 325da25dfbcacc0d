"""Images of any source as tensors: decoded in parallel, to one size, with broken ones named."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lthfunc.data.pixels import Levels, as_gray, as_rgb, is_gray, levels_of
from lthfunc.data.reader_options import check_whole
from lthfunc.errors import UserError, invalid
from lthfunc.tracebacks import first_line

#: Called with (images or other examples decoded, of how many; 0: of an unknown number).
Observe = Callable[[int, int], None]
#: What to call an image, and what opens it with Pillow.
ImageSource = tuple[str, Callable[[], Any]]
#: Images decoded at a time.
_CHUNK = 512
_GROUNDS = {"white": 255, "black": 0}
#: Deep pixels that never use their upper four bits have another depth than their type.
_UNUSED_BITS = 4


class ImageOptions(NamedTuple):
    """The options for images.

    size: (height, width); channels: 1 or 3; depth: bits of deep grey pixels; background: the grey level behind
    transparent pixels.
    """

    size: tuple[int, int] | None
    channels: int | None
    depth: int | None
    background: int


class ImageFormat(NamedTuple):
    """What images are converted to. size: (height, width); gray: one channel instead of three."""

    size: tuple[int, int]
    gray: bool
    asked: ImageOptions


def image_options(
    size: int | str | None, channels: int | None, depth: int | None, background: int | str
) -> ImageOptions:
    """The readers' options, checked. size: ``32`` or ``32x48`` (height x width). Raises UserError."""
    if channels not in (None, 1, 3):
        raise invalid("dataset_option", f"channels={channels}", "1 (grey) or 3 (RGB)")
    if depth is not None:
        check_whole(depth=depth)
        if depth > 32:
            raise invalid("dataset_option", f"depth={depth}", "a number of bits up to 32")
    ground = _GROUNDS.get(background, background) if isinstance(background, str) else background
    if not isinstance(ground, int) or not 0 <= ground <= 255:
        raise invalid("dataset_option", f"background={background}", "white, black, or a grey level from 0 to 255")
    return ImageOptions(_size(size), channels, depth, ground)


def _size(size: int | str | None) -> tuple[int, int] | None:
    if size is None:
        return None
    try:
        height, _, width = str(size).partition("x")
        found = int(height), int(width or height)
    except ValueError:
        found = (0, 0)
    if min(found) < 1:
        raise invalid("dataset_option", f"size={size}", "a number of pixels, or HEIGHTxWIDTH")
    return found


def image_format(sources: Sequence[ImageSource], asked: ImageOptions, place: str, *, skip_broken: bool) -> ImageFormat:
    """The format of all images: as the options say, and otherwise the first readable image's size and channels.

    Raises UserError where the first image cannot be read, or none can.
    """
    for source in sources:
        with _quiet():
            found = _levels(source, asked)
        if isinstance(found, str):
            if not skip_broken:
                raise _broken(found)
            continue
        gray = asked.channels == 1 or (asked.channels is None and found.pixels.ndim == 2)
        return ImageFormat(asked.size or found.pixels.shape[:2], gray, asked)
    raise UserError(f"dataset: no image of {place} can be read")


def decode_splits(
    splits: Mapping[str, Sequence[ImageSource]],
    wanted: ImageFormat,
    into: Mapping[str, Tensor],
    place: str,
    *,
    skip_broken: bool,
    observe: Observe | None,
) -> dict[str, list[int]]:
    """Decode the images of each split into uint8 (n, channels, height, width).

    Returns the indices of each split's unreadable images. Raises UserError for the first broken image, unless they are
    to be skipped; for one of another size, or in colour after a grey one, unless the options convert all; and where
    deep images use so few of their bits that they must have fewer.
    """
    broken: dict[str, list[int]] = {name: [] for name in splits}
    peak, done, total = 0, 0, sum(map(len, splits.values()))

    def one(source: ImageSource, target: Tensor) -> str | int | None:
        found = _levels(source, wanted.asked)
        if isinstance(found, str):
            return found
        target.copy_(torch.from_numpy(_fitted(source[0], found.pixels, wanted)))
        return found.peak

    with _quiet(), ThreadPoolExecutor() as pool:
        for name, sources in splits.items():
            for start in range(0, len(sources), _CHUNK):
                chunk = sources[start : start + _CHUNK]
                for index, told in enumerate(pool.map(one, chunk, into[name][start : start + _CHUNK]), start):
                    if isinstance(told, str):
                        if not skip_broken:
                            raise _broken(told)
                        broken[name].append(index)
                    else:
                        peak = max(peak, told or 0)
                done += len(chunk)
                if observe is not None:
                    observe(done, total)
    _check_depth(peak, place)
    return broken


def _fitted(name: str, pixels: Any, wanted: ImageFormat) -> Any:
    """Levels as (channels, height, width) of the format. Raises UserError where they cannot be converted."""
    from PIL import Image, ImageOps

    if wanted.gray and wanted.asked.channels is None and not is_gray(pixels):
        raise UserError(
            f"dataset: {name}: is in colour, the first image grey; dataset option channels=3 makes all RGB, "
            "channels=1 all grey"
        )
    pixels = as_gray(pixels) if wanted.gray else as_rgb(pixels)
    if pixels.shape[:2] != wanted.size:
        height, width = wanted.size
        if wanted.asked.size is None:
            raise UserError(
                f"dataset: {name}: is {pixels.shape[0]}×{pixels.shape[1]}, the first image {height}×{width}; "
                f"dataset option size={height if height == width else f'{height}x{width}'} resizes all"
            )
        # Scaled to cover the size, and cropped to its centre.
        pixels = np.asarray(ImageOps.fit(Image.fromarray(pixels), (width, height)))
    return np.ascontiguousarray(pixels[None] if wanted.gray else pixels.transpose(2, 0, 1))


def _check_depth(peak: int, place: str) -> None:
    if 0 < peak < 1 << (16 - _UNUSED_BITS):
        raise UserError(
            f"dataset: no 16-bit image of {place} has a pixel above {peak:,}; set the number of bits in use: "
            f"dataset option depth={max(8, peak.bit_length())} (or depth=16, if they are dark)"
        )


def _levels(source: ImageSource, asked: ImageOptions) -> Levels | str:
    """An image's levels; or in words, with its name, why there are none."""
    name, open_image = source
    try:
        with open_image() as image:
            return levels_of(image, asked.depth, asked.background)
    except UserError as error:
        return f"{name}: {error}"
    except Exception as error:  # whatever a decoder raises
        unknown = type(error).__name__ == "UnidentifiedImageError"
        reason = "it is of no format that Pillow knows" if unknown else first_line(error)
        return f"{name}: cannot be read as an image ({reason})"


def _broken(told: str) -> UserError:
    return UserError(f"dataset: {told}; skip_broken leaves such images out")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Pillow's remarks on odd files, but make decompression bombs an error."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield
