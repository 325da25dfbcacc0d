"""The examples of all splits written to one file, by worker processes where that pays off."""

from __future__ import annotations

import hashlib
import multiprocessing
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lthfunc.catalog.data_sets import SUFFIX
from lthfunc.data.content_checks import NamedSplit, check_pairs
from lthfunc.data.examples import Example, read_all
from lthfunc.data.images import Observe
from lthfunc.data.mapped import SPLITS, opened, writing
from lthfunc.data.sources import Source
from lthfunc.data.tensors import scale_of, split_indices
from lthfunc.errors import UserError
from lthfunc.hardware import usable_cores
from lthfunc.trees.atomic_io import safe_file_name
from lthfunc.trees.types import Dataset, Scale

#: Changes whenever examples are decoded to other tensors than before.
_DECODING = 1
#: Seconds of reading from which on worker processes read, and how many of them at most.
_WORTH_WORKERS, _MOST_WORKERS = 3.0, 8
_CHUNK = 1024


class DecodeSettings(NamedTuple):
    """How a file is written; see `from_dataset`."""

    name: str
    held: Mapping[str, float]
    classes: int | None
    labels: tuple[str, ...]
    scale: Scale | None
    workers: int | None
    observe: Observe | None


class _Part(NamedTuple):
    """Where the examples of a split come from: a map-style data set, or tensors, and their numbers there."""

    source: Source
    tensors: Example | None
    places: Tensor


def decoded_once(
    folder: Path, sources: Mapping[str, Source], settings: DecodeSettings, more: str, *, keep: bool = True
) -> Dataset:
    """The data set of these sources, decoded to a file in a folder unless it is there.

    more: a digest of what else decides how examples are read. keep: whether the file stays.
    """
    about = (_DECODING, *settings._replace(workers=None, observe=None), more)
    digests = [source.digest for source in sources.values()]
    digest = hashlib.sha256(repr((about, digests)).encode()).hexdigest()
    target = folder / f"{safe_file_name(settings.name)}-{digest[:16]}{SUFFIX}"
    if not target.exists():
        _decode(target, sources, settings)
    data = opened(target, settings.name)
    if not keep:
        target.unlink()
        if data.mapped:
            raise UserError(f"cache: {settings.name} is too large for memory, so its file must be kept")
    return data


def _decode(target: Path, sources: Mapping[str, Source], settings: DecodeSettings) -> None:
    """Write the file, whole or not at all."""
    first = sources["train"].first
    for name, source in sources.items():
        if (source.first.kinds, source.first.parts) != (first.kinds, first.parts):
            raise UserError(f"{name}: its examples have other shapes, types or names than those of train")
    parts = _parts(sources, settings)
    entries = {
        f"{name}/{which}": (dtype, (len(part.places), *shape))
        for name, part in parts.items() for which, (shape, dtype) in zip("xy", first.kinds, strict=True)
    }  # fmt: skip
    done, total = 0, sum(len(part.places) for part in parts.values())
    with writing(target, entries) as file:
        for name, part in parts.items():
            x, y = file.views[f"{name}/x"], file.views[f"{name}/y"]
            at = 0
            for found in _read(part, settings.workers):
                stop = at + len(found.x)
                x[at:stop], y[at:stop] = found.x, found.y
                done, at = done + stop - at, stop
                if settings.observe is not None:
                    settings.observe(done, total)
        views, scale = file.views, settings.scale
        pairs = [NamedSplit(views[f"{part}/x"], views[f"{part}/y"], part, part) for part in SPLITS]
        images = first.x.dtype is torch.uint8 and first.x.ndim == 4
        scale = scale_of(views["train/x"]) if scale is None and images else scale
        outputs = check_pairs(pairs, settings.classes, settings.labels, scale, mapped=True)
        counts = {name: len(part.places) for name, part in parts.items()}
        file.finish(settings.name, outputs, scale, settings.labels, counts, first.parts)


def _parts(sources: Mapping[str, Source], settings: DecodeSettings) -> dict[str, _Part]:
    """Where the examples of each split come from; iterables are read to their ends."""
    found = {}
    for name, source in sources.items():
        tensors = None if source.spool is None else source.spool()
        found[name] = _Part(source, tensors, torch.arange(source.size if tensors is None else len(tensors.x)))
    train = found["train"]
    missing = [name for name in ("test", "val") if name in settings.held]
    if missing:
        shares = [settings.held[name] for name in missing]
        *chosen, rest = split_indices(len(train.places), shares, settings.name)
        found |= {
            name: train._replace(places=places.sort().values) for name, places in zip(missing, chosen, strict=True)
        }
        found["train"] = train._replace(places=rest.sort().values)
    return {name: found[name] for name in SPLITS}


def _read(part: _Part, workers: int | None) -> Iterable[Example]:
    if part.source.reader is not None:
        yield from read_all(part.source.reader, part.places.tolist(), _workers(part.source, workers))
        return
    assert part.tensors is not None
    for places in torch.split(part.places, _CHUNK):
        yield Example(part.tensors.x[places], part.tensors.y[places], part.tensors.parts)


def _workers(source: Source, given: int | None) -> int:
    """Processes that read a map-style data set: none where that takes no time, or where processes cannot be forked."""
    if given is not None:
        return given
    forked = sys.platform == "linux" and not multiprocessing.current_process().daemon
    return min(_MOST_WORKERS, usable_cores()) if forked and source.seconds > _WORTH_WORKERS else 0
