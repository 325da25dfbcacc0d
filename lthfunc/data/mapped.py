"""Data sets larger than memory: one safetensors file, memory-mapped and read on demand."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from torch import Tensor

from lthfunc.catalog.data_sets import SUFFIX
from lthfunc.errors import UserError
from lthfunc.printable import dtype_name
from lthfunc.tracebacks import first_line
from lthfunc.trees.atomic_io import atomic_file
from lthfunc.trees.dataset_checks import check_data
from lthfunc.trees.files import METADATA_KEY, read_header, save_tree
from lthfunc.trees.multi_input import InputSpec
from lthfunc.trees.types import Dataset, Scale, Split

SPLITS = ("train", "val", "test")
_FORMAT = "lthfunc.data/1"
#: Below this many bytes the tensors of a file in the cache are read into memory.
_INTO_MEMORY = 1 << 30
#: Bytes reserved in the header, mostly for the names of classes.
_HEADER = 1 << 20
#: safetensors' names of the dtypes of inputs and targets.
_DTYPES = {
    "U8": torch.uint8, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
    "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64, "BOOL": torch.bool,
}  # fmt: skip


def save_mapped(path: str | os.PathLike[str], data: Dataset) -> None:
    """Write a data set to a file at `path`, which must end in .safetensors.

    Entries train/x, train/y, val/x … hold the tensors as they are stored; the header holds classes and scale. Raises
    UserError for another ending.

    >>> lf.data.save_mapped("planted.safetensors", lf.data.load("planted"))
    >>> lf.data.open_mapped("planted.safetensors").train.x.shape
    torch.Size([8000, 40])
    """
    if not str(path).endswith(SUFFIX):
        raise UserError(f"{path}: the name of a data set's file ends in {SUFFIX}")
    data = check_data(data)
    if data.stream is not None:
        raise UserError(
            f"{path}: the training examples of {data.name} are streamed; lf.data.from_dataset stores a whole set"
        )
    tree = {name: getattr(data, name)._asdict() for name in SPLITS}
    save_tree(path, tree, _about(data.name, data.classes, data.scale, data.labels, data.parts))


def open_mapped(path: str | os.PathLike[str]) -> Dataset:
    """The data set in a file of `save_mapped` at `path`; its tensors stay on the disk until they are read.

    Training streams them: a thread gathers the next batches while the current ones are used. Raises UserError where the
    file cannot be read or holds something else.

    >>> lf.data.save_mapped("planted.safetensors", lf.data.load("planted"))
    >>> lf.data.open_mapped("planted.safetensors").mapped
    True
    """
    about = read_header(path)
    if about.get("format") != _FORMAT:
        raise UserError(f"dataset: {str(path)!r} is not a data set's file (lthfunc.data.save_mapped writes them)")
    try:
        tensors = _mapped_tensors(Path(path))
        scale, counts = about["scale"], about.get("counts", {})
        train, held, tested = (
            Split(*(tensors[f"{name}/{part}"][: counts.get(name)] for part in "xy")) for name in SPLITS
        )
        return Dataset(
            f"{about['name']} ({Path(path).name})",
            train,
            held,
            tested,
            classes=about["classes"],
            scale=Scale(float(scale["unit"]), *(tuple(map(float, scale[key])) for key in ("mean", "std")))
            if scale
            else None,
            mapped=True,
            parts=tuple(map(_part, about.get("parts", ()))),
            labels=tuple(map(str, about.get("labels", ()))),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # a header of somebody else's making
        raise UserError(
            f"dataset: {str(path)!r} is not a complete data set file ({type(error).__name__}: {first_line(error)})"
        ) from error


def opened(path: Path, name: str) -> Dataset:
    """The data set in a file of the cache: in memory if it is small, since streaming costs a few per cent."""
    data = open_mapped(path)._replace(name=name)
    if path.stat().st_size >= _INTO_MEMORY:
        return data
    train, held, tested = (Split(split.x.clone(), split.y.clone()) for split in (data.train, data.val, data.test))
    return data._replace(train=train, val=held, test=tested, mapped=False)


class Writing(NamedTuple):
    """A data set's file that is being written. views: its tensors, in the file; `finish` writes its header."""

    views: dict[str, Tensor]
    about: dict[str, Any]

    def finish(
        self,
        name: str,
        classes: int,
        scale: Scale | None,
        labels: Sequence[str],
        counts: Mapping[str, int],
        parts: Sequence[InputSpec] = (),
    ) -> None:
        """Describe the tensors. counts: how many of a split's examples exist, the first ones. parts: of inputs."""
        about = _about(name, classes, scale, labels, parts)
        self.about.update(about, counts=dict(counts))


def _about(
    name: str, classes: int, scale: Scale | None, labels: Sequence[str], parts: Sequence[InputSpec]
) -> dict[str, Any]:
    """What a file's header says of its tensors."""
    found = {"format": _FORMAT, "name": name, "classes": classes, "scale": scale._asdict() if scale else None,
             "labels": list(labels)}  # fmt: skip
    several = [{"name": each.name, "shape": list(each.shape), "dtype": dtype_name(each.dtype)} for each in parts]
    return found | ({"parts": several} if several else {})


def _part(about: Mapping[str, Any]) -> InputSpec:
    """An input as a header describes it. Raises KeyError or TypeError for what is none."""
    dtype = {dtype_name(each): each for each in _DTYPES.values()}[about["dtype"]]
    return InputSpec(str(about["name"]), tuple(map(int, about["shape"])), dtype)


@contextmanager
def writing(path: Path, entries: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> Iterator[Writing]:
    """A file of such tensors, filled through a memory map, so that it may be larger than memory.

    It appears under its name when the block ends without an error; `open_mapped` reads it.
    """
    codes = {dtype: code for code, dtype in _DTYPES.items()}
    offsets, end = {}, 0
    for name, (dtype, shape) in sorted(entries.items(), key=lambda item: -item[1][0].itemsize):  # each is aligned
        offsets[name] = (end, end + dtype.itemsize * math.prod(shape))
        end = offsets[name][1]

    def header(about: Mapping[str, Any]) -> bytes:
        fields: dict[str, Any] = {"__metadata__": {METADATA_KEY: json.dumps(about)}}
        for name, (dtype, shape) in entries.items():
            fields[name] = {"dtype": codes[dtype], "shape": list(shape), "data_offsets": list(offsets[name])}
        return json.dumps(fields).encode()

    size = -(-(len(header({})) + _HEADER) // 8) * 8
    with atomic_file(path) as temporary:
        _reserve(temporary, 8 + size + end)
        storage = torch.UntypedStorage.from_file(str(temporary), True, 8 + size + end)
        views = {
            name: _view(storage, 8 + size + offsets[name][0], dtype, shape) for name, (dtype, shape) in entries.items()
        }
        file = Writing(views, {})
        yield file
        written = header(file.about)
        if len(written) > size:
            raise UserError(f"{path}: the names of its classes are too long")
        with temporary.open("r+b") as raw:
            raw.write(size.to_bytes(8, "little") + written.ljust(size))  # spaces may follow a header


def _reserve(path: Path, size: int) -> None:
    """Allocate a file on the disk: a full disk is an error here, but would end the process at a mapped write."""
    if not hasattr(os, "posix_fallocate"):
        os.truncate(path, size)
        return
    with path.open("r+b") as raw:
        os.posix_fallocate(raw.fileno(), 0, size)


def _mapped_tensors(path: Path) -> dict[str, Tensor]:
    """Views into one private mapping of the file; `safetensors` itself would read them whole."""
    with safetensors.safe_open(str(path), framework="pt"):  # it checks that entries lie within the file
        pass
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(size))
    storage = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)

    return {
        name: _view(storage, 8 + size + entry["data_offsets"][0], _DTYPES[entry["dtype"]], tuple(entry["shape"]))
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _view(storage: Any, start: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """The tensor that begins at a byte of a mapped file."""
    whole = torch.empty(0, dtype=torch.uint8).set_(storage)
    return whole[start : start + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
