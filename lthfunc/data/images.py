"""Images of any source as tensors: decoded in parallel, to one size, with broken ones named."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
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

#: Called with (images decoded, of how many).
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
        raise invalid("--dataset-option", f"channels={channels}", "1 (grey) or 3 (RGB)")
    if depth is not None:
        check_whole(depth=depth)
        if depth > 32:
            raise invalid("--dataset-option", f"depth={depth}", "a number of bits up to 32")
    ground = _GROUNDS.get(background, background) if isinstance(background, str) else background
    if not isinstance(ground, int) or not 0 <= ground <= 255:
        raise invalid("--dataset-option", f"background={background}", "white, black, or a grey level from 0 to 255")
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
        raise invalid("--dataset-option", f"size={size}", "a number of pixels, or HEIGHTxWIDTH")
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
    raise UserError(f"--dataset: no image of {place} can be read")


class DecodeResult(NamedTuple):
    """broken: the indices of unreadable images; peak: the largest stored value of deep pixels, or None."""

    broken: list[int]
    peak: int | None


def decode_images(
    sources: Sequence[ImageSource],
    wanted: ImageFormat,
    into: Tensor,
    *,
    skip_broken: bool,
    observe: Callable[[int], None],
) -> DecodeResult:
    """Decode images into uint8 (n, channels, height, width).

    Raises UserError for the first broken image, unless they are to be skipped; and for one of another size, or in
    colour after a grey one, unless the options convert all.
    """
    broken: list[int] = []
    peaks: set[int] = set()

    def one(index: int) -> str | int | None:
        found = _levels(sources[index], wanted.asked)
        if isinstance(found, str):
            return found
        into[index] = torch.from_numpy(_fitted(sources[index][0], found.pixels, wanted))
        return found.peak

    with _quiet(), ThreadPoolExecutor() as pool:
        for start in range(0, len(sources), _CHUNK):
            chunk = range(start, min(start + _CHUNK, len(sources)))
            for index, told in zip(chunk, pool.map(one, chunk), strict=True):
                if isinstance(told, str):
                    if not skip_broken:
                        raise _broken(told)
                    broken.append(index)
                elif told is not None:
                    peaks.add(told)
            observe(len(chunk))
    return DecodeResult(broken, max(peaks, default=None))


def _fitted(name: str, pixels: Any, wanted: ImageFormat) -> Any:
    """Levels as (channels, height, width) of the format. Raises UserError where they cannot be converted."""
    from PIL import Image, ImageOps

    if wanted.gray and wanted.asked.channels is None and not is_gray(pixels):
        raise UserError(
            f"--dataset: {name}: is in colour, the first image grey; --dataset-option channels=3 makes all RGB, "
            "channels=1 all grey"
        )
    pixels = as_gray(pixels) if wanted.gray else as_rgb(pixels)
    if pixels.shape[:2] != wanted.size:
        height, width = wanted.size
        if wanted.asked.size is None:
            raise UserError(
                f"--dataset: {name}: is {pixels.shape[0]}×{pixels.shape[1]}, the first image {height}×{width}; "
                f"--dataset-option size={height if height == width else f'{height}x{width}'} resizes all"
            )
        # Scaled to cover the size, and cropped to its centre.
        pixels = np.asarray(ImageOps.fit(Image.fromarray(pixels), (width, height)))
    return np.ascontiguousarray(pixels[None] if wanted.gray else pixels.transpose(2, 0, 1))


def check_depth(peaks: Sequence[int | None], place: str) -> None:
    """Raise UserError where deep images use so few of their bits that they must have fewer."""
    peak = max((each for each in peaks if each is not None), default=0)
    if 0 < peak < 1 << (16 - _UNUSED_BITS):
        raise UserError(
            f"--dataset: no 16-bit image of {place} has a pixel above {peak:,}; set the number of bits in use: "
            f"--dataset-option depth={max(8, peak.bit_length())} (or depth=16, if they are dark)"
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
    return UserError(f"--dataset: {told}; --skip-broken leaves such images out")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Pillow's remarks on odd files, but make decompression bombs an error."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield
