"""One image of any mode and depth as eight-bit levels: upright, opaque, grey or RGB; or an error of one line."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lthfunc.errors import UserError

Array = NDArray[Any]

_DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")
_OPAQUE = ("RGB", "RGBX", "P", "CMYK", "YCbCr", "HSV")
#: Formats whose further frames are other pictures (those of a phone's JPEG are previews).
_FRAMED = ("GIF", "PNG", "WEBP", "TIFF")
#: Formats whose deep grey pixels have 16 bits, although some versions of Pillow return 32.
_SIXTEEN = ("PNG", "PPM")
#: Tags of TIFF and EXIF.
_BITS, _PHOTOMETRIC, _ORIENTATION, _SIGN = 258, 262, 274, 339


#: The most channels of images: grey or RGB, with transparency or infrared.
_CHANNELS = 4


class Levels(NamedTuple):
    """pixels: uint8 (height, width), grey, or (height, width, 3). peak: the largest stored value of deep pixels whose
    depth is that of their type, which may be more than was used; None otherwise."""

    pixels: Array
    peak: int | None


def levels_of(image: Any, depth: int | None, background: int) -> Levels:
    """The levels of a PIL image. depth: bits of grey pixels deeper than eight, where the file doesn't say.

    Grey of more than eight bits is scaled, white to 255; transparent pixels show the grey level `background`; an
    orientation in the EXIF data is applied. Raises UserError, without the image's name, for an image that has no
    unambiguous levels, and Pillow's own errors for a broken one.
    """
    if image.format in _FRAMED and getattr(image, "n_frames", 1) > 1:
        raise UserError(f"has {image.n_frames} frames; save each frame as a separate file")
    image.load()  # a TIFF turns itself
    turn, peak = _orientation(image), None
    if image.mode in _DEEP:
        pixels, peak = _shallow(image, depth, background)
    elif image.mode in _TRANSPARENT or "transparency" in image.info or _palette_mode(image).endswith("A"):
        pixels = _over(background, image)
    elif image.mode in ("1", "L"):
        pixels = np.asarray(image.convert("L"))
    elif image.mode in _OPAQUE:
        pixels = np.asarray(image.convert("RGB"))
    else:
        kind = {"F": "floating-point numbers, whose white is not known", "LAB": "in the LAB colour space"}
        raise UserError(f"has pixels {kind.get(image.mode, f'of mode {image.mode}')}; save it as 8-bit RGB or grey")
    return Levels(np.ascontiguousarray(_turned(pixels, turn)), peak)


def channels_last(first: int, last: int) -> bool:
    """Whether an image of such first and last dimensions has its channels last."""
    return last <= _CHANNELS < first or (last in (1, 3) and first not in (1, 3))


def is_gray(pixels: Array) -> bool:
    """Whether levels are grey, in one channel or in three equal ones."""
    return pixels.ndim == 2 or bool((pixels[..., :1] == pixels[..., 1:]).all())


def as_gray(pixels: Array) -> Array:
    """Levels in one channel; of colours the luma, as Pillow weights them."""
    if pixels.ndim == 2:
        return pixels
    from PIL import Image

    return pixels[..., 0] if is_gray(pixels) else np.asarray(Image.fromarray(pixels).convert("L"))


def as_rgb(pixels: Array) -> Array:
    """Levels in three channels."""
    return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels


def _shallow(image: Any, depth: int | None, background: int) -> tuple[Array, int | None]:
    """Grey of more than eight bits, scaled to eight; and its peak, where the depth is unknown."""
    stored = np.asarray(image).astype(np.int64)
    tags = getattr(image, "tag_v2", {})
    bits, told = depth, depth is not None
    if bits is None and _PHOTOMETRIC in tags:
        bits = int(tags[_BITS][0]) if _BITS in tags and tags.get(_SIGN, (1,))[0] == 1 else None
        told = bits not in (None, 16)
        bits = bits if bits is not None and bits <= 16 else None
    elif bits is None and (image.mode != "I" or image.format in _SIXTEEN):
        bits = 16
    if bits is None:
        raise UserError(
            "has grey pixels of 32 bits or with a sign, whose white level is unknown; dataset option depth=16 sets "
            "it to 65,535"
        )
    white, least, peak = 2**bits - 1, int(stored.min()), int(stored.max())
    if least < 0 or peak > white:
        raise UserError(f"has a pixel of {least if least < 0 else peak:,}, but {bits} bits hold 0 to {white:,}")
    pixels = ((stored * 255 + white // 2) // white).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == 0:  # white is 0; of deep pixels Pillow leaves that as it is
        pixels = 255 - pixels
    if "transparency" in image.info:
        pixels[stored == image.info["transparency"]] = background
    return pixels, None if told else peak


def _over(background: int, image: Any) -> Array:
    """A transparent image's levels over a grey background; opaque pixels stay exact."""
    mode = image.mode
    both = image.convert("LA" if mode in ("LA", "La") else "RGBA")
    pixels = np.asarray(both).astype(np.int64)
    alpha = pixels[..., -1:]
    shown = ((pixels[..., :-1] * alpha + background * (255 - alpha) + 127) // 255).astype(np.uint8)
    gray = mode in ("1", "L", "LA", "La")
    return shown[..., 0] if gray else shown


def _palette_mode(image: Any) -> str:
    palette = getattr(image, "palette", None)
    return str(palette.mode) if image.mode == "P" and palette is not None else ""


def _orientation(image: Any) -> int:
    """EXIF's number, 1 to 8; 1 where there is none that can be read."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # whatever a reader of broken EXIF data meets: such data turn nothing
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _turned(pixels: Array, orientation: int) -> Array:
    """Upright, from EXIF's orientation: 5 to 8 are on their side, and every other pair is mirrored."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
