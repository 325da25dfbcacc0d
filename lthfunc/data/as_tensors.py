"""NumPy arrays, lists and tensors as the inputs and targets of a data set, or an error of one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lthfunc.errors import UserError
from lthfunc.printable import a_or_an
from lthfunc.tracebacks import first_line
from lthfunc.trees.dataset_checks import describe_data
from lthfunc.trees.multi_input import InputSpec, pack_inputs

#: One tensor of inputs, or several: in the order of the network's arguments, or by their names.
Inputs = Tensor | Sequence[Tensor] | Mapping[str, Tensor]

#: NumPy's unsigned integers, of which torch supports little, and what holds their values.
_WIDER = {"uint16": np.int32, "uint32": np.int64, "uint64": np.int64}


def inputs_of(value: Any, name: str) -> tuple[Tensor, tuple[InputSpec, ...]]:
    """(one tensor, its parts) from a tensor, an array, lists of numbers, or several tensors or arrays.

    Arrays of float64 become float32, as networks expect; tensors stay as they are. Raises UserError.
    """
    several = isinstance(value, Mapping) or (
        isinstance(value, (tuple, list)) and len(value) > 0 and all(isinstance(x, (Tensor, np.ndarray)) for x in value)
    )
    if not several:
        return tensor_of(value, name), ()
    named = value if isinstance(value, Mapping) else dict(enumerate(value))
    made = {key: tensor_of(each, f"{name}, input {key!r}") for key, each in named.items()}
    if not made or any(each.ndim == 0 for each in made.values()):
        raise UserError(f"{name}: its inputs are a {describe_data(value)}, not tensors of (examples, …)")
    return pack_inputs(made)


def tensor_of(value: Any, name: str) -> Tensor:
    """A tensor of numbers. Raises UserError for anything else, and for numbers that don't fit in float32."""
    tensor = value.detach() if isinstance(value, Tensor) else torch.from_numpy(_plain(value, name))
    if tensor.ndim == 0:
        raise UserError(f"{name}: invalid value: {a_or_an(describe_data(value))} (expected tensors of (examples, …))")
    return tensor


def targets_of(value: Any, name: str, x: Tensor) -> Tensor:
    """Targets: int64; or float32 (n, numbers). A column of classes becomes (n,). Raises UserError."""
    y = tensor_of(value, name)
    if y.is_floating_point():
        return to_float32(y if y.ndim > 1 else y[:, None], name, "target of ")
    if y.dtype.is_complex:
        raise UserError(f"{name}: targets are complex (expected classes or real numbers)")
    if y.ndim == 2 and y.shape[1] == 1 and tuple(x.shape[1:]) != (1,):
        y = y[:, 0]
    return y.long()


def to_float32(values: Tensor, name: str, what: str = "") -> Tensor:
    """Floats as float32. what: of an example they are. Raises UserError for one that is too large."""
    found = values.float()
    lost = found.isinf() & values.isfinite()
    if lost.any():
        where = tuple(lost.nonzero()[0].tolist())
        raise UserError(f"{name}: {what}example {where[0]} holds {float(values[where]):g}, too large for float32")
    return found


def _plain(value: Any, name: str) -> Any:
    """An array of numbers of a dtype that torch has, in native byte order and row-major."""
    if isinstance(value, np.ma.MaskedArray) and np.ma.getmaskarray(value).any():
        raise UserError(f"{name}: a masked array has missing values; fill them in, or drop those examples")
    if not isinstance(value, (np.ndarray, list, tuple)) and not hasattr(value, "__array__"):
        raise UserError(
            f"{name}: invalid value: {a_or_an(describe_data(value))} (expected a tensor, an array or lists of numbers)"
        )
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:  # lists of several lengths
        raise UserError(f"{name}: a {describe_data(value)} cannot be one tensor ({first_line(error)})") from error
    kind = array.dtype
    if kind.names or kind.kind not in "biuf":
        texts = "; np.unique(…, return_inverse=True)[1] numbers texts from 0 on" if kind.kind in "USO" else ""
        raise UserError(f"{name}: invalid value: an array of {kind} (expected whole numbers or floats{texts})")
    if kind.name == "uint64" and array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise UserError(
            f"{name}: it holds {int(array.max())}, but the largest whole number is {np.iinfo(np.int64).max}"
        )
    if kind.kind == "f" and kind.itemsize > 4:
        return to_float32(torch.from_numpy(array.astype(np.float64, order="C")), name).numpy()
    return np.array(array, dtype=_WIDER.get(kind.name, array.dtype.newbyteorder("=")), order="C")  # its own memory
