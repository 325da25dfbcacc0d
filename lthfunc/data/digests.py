"""A digest of any object's contents, the same in every process: what a decoded data set is found again by."""

from __future__ import annotations

import hashlib
import io
import pickle
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor

from lthfunc.trees.ops import raw_bytes


class _Hashing(io.RawIOBase):
    """A file that remembers nothing but the digest of what is written to it."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return len(data)


class _Pickler(pickle.Pickler):
    """Pickles with stable names for what pickle would write with addresses or random names.

    Functions count by their code, so that lambdas may occur; tensors by their values.
    """

    def persistent_id(self, value: Any) -> Any:
        """A description in place of the object, or None for pickle's own."""
        if isinstance(value, Tensor):
            return "tensor", str(value.dtype), tuple(value.shape), tensor_digest(value)
        if isinstance(value, FunctionType):
            code = value.__code__
            inside = [str(each) for each in code.co_consts if not hasattr(each, "co_code")]
            closed = [object_digest(cell.cell_contents) for cell in value.__closure__ or ()]
            given = object_digest((value.__defaults__, value.__kwdefaults__))
            return "function", value.__qualname__, code.co_code.hex(), code.co_names, inside, closed, given
        if isinstance(value, (set, frozenset)):
            return "set", sorted(map(object_digest, value))
        if isinstance(value, (type, ModuleType, BuiltinFunctionType)):
            return type(value).__name__, getattr(value, "__qualname__", value.__name__)
        if isinstance(value, MethodType):
            return "method", value.__func__.__qualname__, object_digest(value.__self__)
        if isinstance(value, torch.Generator):
            return "generator"
        return None


def object_digest(value: Any) -> str:
    """A digest of an object's contents; of one that cannot be pickled, of its class alone."""
    file = _Hashing()
    try:
        _Pickler(file, protocol=5).dump(value)
    except Exception:  # an open file, a lock, a generator, whatever __reduce__ raises
        return f"{type(value).__module__.rpartition('.')[2]}.{type(value).__qualname__}"
    return file.digest.hexdigest()


def tensor_digest(value: Tensor) -> str:
    """A digest of a tensor's values."""
    return hashlib.sha256(raw_bytes(value).numpy().data).hexdigest() if value.numel() else ""
