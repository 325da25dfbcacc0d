"""Image files by their specifications, written without the library that reads them."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np

H, W = 4, 6
DEEP = np.arange(H * W, dtype=np.uint16).reshape(H, W) * 2849  # 0 … 65,527


def colours(seed: int = 0, channels: int = 3) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (H, W, channels), dtype=np.uint8)


def png(pixels: np.ndarray[Any, Any], bits: int, kind: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG by its specification. pixels: (height, width) or (…, channels); kind: 0 grey, 2 RGB, 4 grey + alpha, 6."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = []
    for row in pixels:
        flat = row.ravel()
        if bits == 16:
            rows.append(flat.astype(">u2").tobytes())
        elif bits == 8:
            rows.append(flat.astype(np.uint8).tobytes())
        else:
            every = np.unpackbits(flat.astype(np.uint8)[:, None], axis=1)[:, 8 - bits :].ravel()
            rows.append(np.packbits(every).tobytes())
    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], bits, kind, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [chunk(b"IHDR", head), *(chunk(*each) for each in chunks), chunk(b"IDAT", body), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(pixels: np.ndarray[Any, Any], order: str, **tags: int) -> bytes:
    """An uncompressed TIFF of one strip by its specification. order: "<" or ">"."""
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    entries = {256: pixels.shape[1], 257: pixels.shape[0], 258: 8 * pixels.itemsize, 259: 1, 262: 2 if channels == 3
               else 1, 273: 0, 277: channels, 278: pixels.shape[0], 279: pixels.nbytes}  # fmt: skip
    entries |= {{"photometric": 262, "orientation": 274, "sign": 339, "bits": 258}[key]: tags[key] for key in tags}
    start = 8 + 2 + 12 * len(entries) + 4
    entries[273] = start + 6
    fields = b""
    for tag, value in sorted(entries.items()):
        if tag == 258 and channels == 3:
            fields += struct.pack(order + "HHII", tag, 3, 3, start)
        elif tag in (273, 279):
            fields += struct.pack(order + "HHII", tag, 4, 1, value)
        else:
            fields += struct.pack(order + "HHIHH", tag, 3, 1, value, 0)
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    depths = struct.pack(order + "HHH", *(entries[258],) * 3)
    raw = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    return head + struct.pack(order + "H", len(entries)) + fields + b"\0" * 4 + depths + raw


def to_eight(stored: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    """By the definition: the share of white, of 255."""
    out: np.ndarray[Any, Any] = np.floor(stored.astype(np.float64) / (2**bits - 1) * 255 + 0.5).astype(np.uint8)
    return out
