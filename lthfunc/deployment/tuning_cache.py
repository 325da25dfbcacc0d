"""Measured times of layers and programs, kept between runs so that a machine measures each only once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lthfunc.argument_kinds import is_number
from lthfunc.deployment.formats import MaskedLayer, block_density, block_size
from lthfunc.hardware import cache_home, processor_name
from lthfunc.sparse.kernels.build import kernels_name
from lthfunc.trees.atomic_io import write_atomically
from lthfunc.trees.types import Masks


class TuningCache:
    """Times in seconds, several by a key that names everything they depend on; kept in a file where `path` is given.

    fresh: ignore the times that the file has.
    """

    def __init__(self, path: Path | None, *, fresh: bool = False) -> None:
        self._path = path
        self._known: dict[str, list[float]] = {}
        if path is not None and path.exists() and not fresh:
            self._known = _read(path)

    def get(self, key: str) -> list[float] | None:
        """The times under a key, or None."""
        return self._known.get(key)

    def put(self, found: dict[str, list[float]]) -> None:
        """Add times, and keep those that another process has written meanwhile."""
        self._known |= found
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            others = TuningCache(self._path)._known
            write_atomically(self._path, (json.dumps(others | self._known, indent=0) + "\n").encode())
        except OSError:
            if self._path != tunings_file():  # the user named the file
                raise
            # Where the home folder is read-only, the next run measures again.


def _read(path: Path) -> dict[str, list[float]]:
    """The times in a file; entries that are damaged or of another version are ignored."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {
        key: times
        for key, times in found.items()
        if isinstance(times, list) and len(times) > 1 and all(map(_is_time, times))
    }


def _is_time(value: Any) -> bool:
    return is_number(value) and bool(value > 0)


def tunings_file() -> Path:
    """Return the path of the user's own file of measured times, in lthfunc's cache folder, for `specialize`.

    >>> import lthfunc as lf
    >>> lf.tunings_file().name
    'tunings.json'
    """
    return cache_home() / "tunings.json"


def machine_key(device: torch.device) -> str:
    """Device, threads and versions, on which every time depends."""
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return f"{where}, {torch.get_num_threads()} threads, torch {torch.__version__}, kernels {kernels_name()}"


def layer_key(layer: MaskedLayer, form: str) -> str:
    """Key of a layer in a format: shapes, density, dtype and machine."""
    settings = layer.module.extra_repr()
    if form == "block" and (size := block_size(layer)):  # on which the time depends instead of the density
        form = f"{block_density(layer.mask, size):.3f} of blocks {size}×{size}"
    shape, density = "×".join(map(str, layer.x.shape)), float(layer.mask.float().mean())
    return (
        f"{form}: {type(layer.module).__name__}({settings}) on {shape}, density {density:.3f}, {layer.x.dtype}, "
        f"{machine_key(layer.x.device)}"
    )


def program_keys(codes: Mapping[str, str], masks: Masks, x: torch.Tensor) -> dict[str, str]:
    """Keys of whole programs: code, masks, shape and dtype of the inputs, and machine."""
    survivors = hashlib.sha256()
    for name, mask in masks.items():
        survivors.update(name.encode())
        survivors.update(mask.cpu().numpy().tobytes())
    about = f"{'×'.join(map(str, x.shape))}, {x.dtype}, {machine_key(x.device)}"
    keys = {}
    for name, code in codes.items():
        digest = survivors.copy()
        digest.update(code.encode())
        keys[name] = f"{name}: {digest.hexdigest()[:16]} on {about}"
    return keys
