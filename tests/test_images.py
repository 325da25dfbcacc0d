"""Images of every mode, depth and orientation come to be the levels that a viewer shows, or are refused in one line."""

from __future__ import annotations

import copy
import io
import struct
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from picture_files import DEEP, H, W, colours, png, tiff, to_eight
from PIL import Image

from lthfunc.data.images import decode_splits, image_format, image_options
from lthfunc.errors import UserError

pytestmark = pytest.mark.filterwarnings("error")


def read(content: bytes | Callable[[], Any], **options: Any) -> np.ndarray[Any, Any]:
    """The one image as (channels, height, width)."""
    asked = image_options(**{"size": None, "channels": None, "depth": None, "background": "white", **options})
    source = ("it", content if callable(content) else lambda: Image.open(io.BytesIO(content)))
    wanted = image_format([source], asked, "here", skip_broken=False)
    into = torch.empty(1, 1 if wanted.gray else 3, *wanted.size, dtype=torch.uint8)
    decode_splits({"all": [source]}, wanted, {"all": into}, "here", skip_broken=False, observe=None)
    return into[0].numpy()


@pytest.mark.parametrize("form", ["png", "tiff <", "tiff >", "pgm", "tiff white is 0", "in memory", "in memory B"])
def test_deep_grey_is_scaled_by_its_depth(form: str) -> None:
    wanted = to_eight(DEEP, 16)
    contents: dict[str, Any] = {
        "png": png(DEEP, 16, 0),
        "tiff <": tiff(DEEP, "<"),
        "tiff >": tiff(DEEP, ">"),
        "pgm": b"P5 %d %d 65535\n" % (W, H) + DEEP.astype(">u2").tobytes(),
        "tiff white is 0": tiff(DEEP, "<", photometric=0),
        "in memory": lambda: Image.fromarray(DEEP),
        "in memory B": lambda: Image.frombytes("I;16B", (W, H), DEEP.astype(">u2").tobytes()),
    }
    if form == "tiff white is 0":
        wanted = 255 - wanted
    np.testing.assert_array_equal(read(contents[form]), wanted[None])


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_shallow_grey_is_scaled_by_its_depth(bits: int) -> None:
    stored = (np.arange(H * W) % 2**bits).reshape(H, W)
    np.testing.assert_array_equal(read(png(stored, bits, 0)), to_eight(stored, bits)[None])
    white = 2**bits - 1
    pgm = b"P5 %d %d %d\n" % (W, H, white) + stored.astype(np.uint8).tobytes()
    np.testing.assert_array_equal(read(pgm), to_eight(stored, bits)[None])


def test_deep_colours_lose_their_lower_half() -> None:
    """Pillow keeps the upper byte: the right level, or the one below it."""
    deep = np.random.default_rng(0).integers(0, 65536, (H, W, 3), dtype=np.uint16)
    for content in (png(deep, 16, 2), tiff(deep, "<"), tiff(deep, ">")):
        found = read(content).transpose(1, 2, 0)
        np.testing.assert_array_equal(found, deep // 256)
        assert np.abs(found.astype(int) - to_eight(deep, 16)).max() <= 1


def test_the_depth_of_deep_grey_can_be_said_and_is_asked_for_where_it_is_not_known() -> None:
    twelve = DEEP // 16
    np.testing.assert_array_equal(read(png(twelve, 16, 0), depth=12), to_eight(twelve, 12)[None])
    with pytest.raises(UserError, match=r"no 16-bit image of here has a pixel above 4,095; .*depth=12 \(or depth=16"):
        read(png(twelve, 16, 0))
    np.testing.assert_array_equal(read(png(twelve, 16, 0), depth=16), to_eight(twelve, 16)[None])
    with pytest.raises(UserError, match=r"it: has a pixel of 65,527, but 12 bits hold 0 to 4,095"):
        read(png(DEEP, 16, 0), depth=12)
    wide = DEEP.astype(np.uint32)
    for content in (
        tiff(wide, "<"),
        tiff(DEEP.astype(np.int16), "<", sign=2),
        lambda: Image.fromarray(wide.view("i4")),
    ):
        with pytest.raises(
            UserError, match=r"it: has grey pixels of 32 bits or with a sign, whose white level is unknown"
        ):
            read(content)
    np.testing.assert_array_equal(read(tiff(wide, "<"), depth=16), to_eight(DEEP, 16)[None])
    with pytest.raises(UserError, match=r"invalid value 'depth=40'"):
        image_options(None, None, 40, 0)


def test_floating_point_and_lab_pixels_are_refused() -> None:
    for content, words in (
        (lambda: Image.fromarray(np.random.default_rng(0).random((H, W), dtype=np.float32)), "floating-point numbers"),
        (lambda: Image.frombytes("LAB", (W, H), colours().tobytes()), "in the LAB colour space"),
    ):
        with pytest.raises(UserError, match=rf"^dataset: it: has pixels {words}.*; save it as 8-bit RGB or grey"):
            read(content)


def over(pixels: np.ndarray[Any, Any], alpha: np.ndarray[Any, Any], ground: int) -> np.ndarray[Any, Any]:
    share = alpha[..., None].astype(np.float64) / 255
    mixed = np.floor(pixels * share + ground * (1 - share) + 0.5)
    out: np.ndarray[Any, Any] = mixed.astype(np.uint8).transpose(2, 0, 1)
    return out


@pytest.mark.parametrize("ground", ["white", "black", 90])
def test_transparent_pixels_show_the_background(ground: Any) -> None:
    level = {"white": 255, "black": 0}.get(ground, ground)
    rgba = colours(channels=4)
    la = colours(1, 2)
    np.testing.assert_array_equal(read(png(rgba, 8, 6), background=ground), over(rgba[..., :3], rgba[..., 3], level))
    np.testing.assert_array_equal(read(png(la, 8, 4), background=ground), over(la[..., :1], la[..., 1], level))
    index = np.arange(H * W).reshape(H, W) % 4
    palette = colours(2)[0, :4]
    alphas = np.array([0, 128, 255, 255], dtype=np.uint8)
    paletted = png(index, 8, 3, (b"PLTE", palette.tobytes()), (b"tRNS", alphas[:2].tobytes()))
    np.testing.assert_array_equal(read(paletted, background=ground), over(palette[index], alphas[index], level))
    for stored, kind, clear in ((colours(3), 2, colours(3)[1, 2]), (colours(3)[..., 0], 0, colours(3)[1, 2, :1])):
        content = png(stored, 8, kind, (b"tRNS", clear.astype(">u2").tobytes()))
        pixels = stored.reshape(H, W, -1)
        alpha = np.where((pixels == clear).all(-1), 0, 255)
        np.testing.assert_array_equal(read(content, background=ground), over(pixels, alpha, level))
    content = png(DEEP, 16, 0, (b"tRNS", DEEP[1, :1].astype(">u2").tobytes()))
    np.testing.assert_array_equal(
        read(content, background=ground),
        over(to_eight(DEEP, 16)[..., None], np.where(DEEP[1, 0] == DEEP, 0, 255), level),
    )


def test_strokes_on_nothing_are_not_all_black() -> None:
    """As drawing programs save them: black everywhere, and the drawing in the alpha channel."""
    strokes = np.zeros((H, W, 4), dtype=np.uint8)
    strokes[1:3, 2, 3] = 255
    found = read(png(strokes, 8, 6))
    np.testing.assert_array_equal(found, 255 - np.repeat(strokes[None, ..., 3], 3, axis=0))


def test_premultiplied_and_paletted_alpha() -> None:
    la = Image.frombytes("LA", (W, H), colours(1, 2).tobytes())
    rgba = Image.frombytes("RGBA", (W, H), colours(1, 4).tobytes())
    opaque = Image.fromarray(colours())
    for image in (la.convert("La"), rgba.convert("RGBa")):
        again = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
        np.testing.assert_array_equal(read(partial(copy.copy, image)), read(partial(copy.copy, again)))
    paletted = Image.frombytes("PA", (W, H), bytes([0, 255, 1, 255, 2, 0] * (H * W // 3)))
    paletted.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    assert read(lambda: paletted)[:, 0, :3].T.tolist() == [[10, 20, 30], [40, 50, 60], [255, 255, 255]]
    np.testing.assert_array_equal(read(lambda: opaque.convert("RGBX")), colours().transpose(2, 0, 1))


def test_colour_spaces_of_print_and_video() -> None:
    cmyk = colours(4, 4).astype(np.float64)
    wanted = (255 - cmyk[..., :3]) * (255 - cmyk[..., 3:]) / 255
    found = read(lambda: Image.frombytes("CMYK", (W, H), colours(4, 4).tobytes()))
    assert np.abs(found.transpose(1, 2, 0) - wanted).max() <= 1
    y, cb, cr = np.moveaxis(colours(5).astype(np.float64), 2, 0)
    wanted = np.stack(
        [y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128)]
    )
    found = read(lambda: Image.frombytes("YCbCr", (W, H), colours(5).tobytes()))
    assert np.abs(found - np.clip(wanted, 0, 255)).max() <= 1
    hues = Image.fromarray(colours(6)).convert("HSV")
    assert np.abs(read(lambda: hues).astype(int) - colours(6).transpose(2, 0, 1)).max() <= 8  # six sectors of 42 levels
    file = io.BytesIO()
    flat = np.full((16, 16, 4), (30, 200, 90, 20), dtype=np.uint8)
    Image.frombytes("CMYK", (16, 16), flat.tobytes()).save(file, "JPEG", quality=100)
    expected = [(255 - ink) * (255 - 20) / 255 for ink in (30, 200, 90)]
    assert np.abs(read(file.getvalue())[:, 8, 8] - np.array(expected)).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_orientation_in_the_exif_data_is_followed(orientation: int) -> None:
    """By EXIF's own words: where the first row and the first column of what is stored belong."""
    upright = colours(7)
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.transpose(1, 0, 2), 6: np.rot90(upright, 1), 7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    stored = np.ascontiguousarray(stored)
    file = io.BytesIO()
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(stored).save(file, "PNG", exif=exif)
    np.testing.assert_array_equal(read(file.getvalue()), upright.transpose(2, 0, 1))
    np.testing.assert_array_equal(read(tiff(stored, "<", orientation=orientation)), upright.transpose(2, 0, 1))
    deep = tiff(np.ascontiguousarray(stored[..., 0].astype(np.uint16) * 257), "<", orientation=orientation)
    np.testing.assert_array_equal(read(deep), upright[None, ..., 0])


def test_broken_exif_data_turn_nothing() -> None:
    content = png(colours(8), 8, 2, (b"eXIf", b"II*\0\xff\xff\xff\xff"))
    np.testing.assert_array_equal(read(content), colours(8).transpose(2, 0, 1))


def test_several_frames_are_no_image_but_a_phones_previews_are_left_out() -> None:
    frames = [Image.fromarray(colours(seed)) for seed in range(3)]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        file = io.BytesIO()
        frames[0].save(file, kind, save_all=True, append_images=frames[1:])
        with pytest.raises(UserError, match=r"it: has 3 frames; save each frame as a separate file"):
            read(file.getvalue())
    file = io.BytesIO()
    frames[0].save(file, "MPO", save_all=True, append_images=frames[1:2], quality=100)
    assert read(file.getvalue()).shape == (3, H, W)


def test_what_is_broken_is_one_line_with_the_reason() -> None:
    whole = png(colours(), 8, 2)
    huge = whole[:16] + struct.pack(">II", 30_000, 30_000) + whole[24:29]
    huge += struct.pack(">I", zlib.crc32(huge[12:29])) + whole[33:]
    near = whole[:16] + struct.pack(">II", 10_000, 10_000) + whole[24:29]
    near += struct.pack(">I", zlib.crc32(near[12:29])) + whole[33:]
    for content, words in (
        (b"", "it is of no format that Pillow knows"),
        (b"GIF89a", "it is of no format|unexpected|index out of range|cannot"),
        (whole[: len(whole) // 2], "."),
        (huge, r"Image size \(900000000 pixels\) exceeds limit"),
        (near, r"Image size \(100000000 pixels\) exceeds limit"),
        (whole[:41] + b"\xff" * 8 + whole[49:], "."),
    ):
        with pytest.raises(UserError, match=words) as caught:
            read(content)
        assert str(caught.value).startswith("dataset: it: cannot be read as an image (")
        assert str(caught.value).endswith("; skip_broken leaves such images out")
        assert "\n" not in str(caught.value)
