"""Checks that a value is a Dataset, and what to do instead where it isn't."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lthfunc.argument_kinds import is_number
from lthfunc.errors import UserError, invalid
from lthfunc.trees.types import Dataset, Scale, Split

_MAKE = "lf.data.from_tensors(name, (inputs, targets), (test_inputs, test_targets), val=…)"
#: How to make a Dataset of what PyTorch calls one.
_INSTEAD = {
    "DataLoader": "lf.data.from_dataset(name, loader.dataset) reads what it loads from",
    "TensorDataset": f"{_MAKE} takes its tensors, lf.data.from_dataset(name, …) the set itself",
}
_MAP_STYLE = "lf.data.from_dataset(name, train_set, test_set) makes one of map-style data sets"


def describe_data(value: Any) -> str:
    """What a value is, in a few words."""
    kind = type(value).__name__
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple):
        return f"{kind} of shape {tuple(shape)}"
    return f"{kind} of {len(value)}" if isinstance(value, (tuple, list, dict)) else kind


def check_data(data: Any, option: str = "data") -> Dataset:
    """The data set, if it is one: three splits, each with as many inputs as targets. Takes the same time at any size.

    Raises UserError for anything else, and says how to make a Dataset of it.
    """
    if not isinstance(data, Dataset):
        map_style = hasattr(data, "__getitem__") and hasattr(data, "__len__")
        own = not isinstance(data, (tuple, list, dict, str, Tensor)) and not hasattr(data, "dtype")
        kind = "name of a data set" if isinstance(data, str) else describe_data(data)
        how = _INSTEAD.get(type(data).__name__, _MAP_STYLE if map_style and own else f"{_MAKE} makes one")
        if isinstance(data, str):
            how = f"lf.data.load({data!r}) loads it"
        raise UserError(f"{option}: a {kind} is not an lthfunc Dataset; {how}")
    splits: dict[str, Any] = {}
    for name in ("train", "val", "test"):
        split = getattr(data, name)
        if not (isinstance(split, tuple) and len(split) == 2 and all(isinstance(each, Tensor) for each in split)):
            raise UserError(f"{option}: its {name} is a {describe_data(split)}, not a Split of two tensors")
        x, y = split
        if x.ndim == 0 or y.ndim == 0 or len(x) != len(y):
            raise UserError(
                f"{option}: its {name} has inputs of shape {tuple(x.shape)} and targets of shape {tuple(y.shape)}, "
                "which differ in length"
            )
        if not isinstance(split, Split):
            splits[name] = Split(x, y)
    if data.scale is not None:
        check_scale(data.scale, tuple(data.train.x.shape[1:]))
    found: Dataset = data._replace(**splits)
    return found


def check_scale(scale: Scale, shape: tuple[int, ...]) -> None:
    """Raise UserError unless a scale consists of finite numbers for inputs of this shape."""
    if not isinstance(scale, Scale):
        raise UserError(f"scale: a {describe_data(scale)} is not an lf.Scale(unit, mean, std)")
    for name, values in (("mean", scale.mean), ("std", scale.std)):
        if not isinstance(values, (tuple, list)) or len(values) not in (1, *shape[:1]):
            raise invalid(f"scale: {name}", values, f"a number for each of {shape[0] if shape else 1} channels")
        if not all(is_number(value) for value in values):
            raise invalid(f"scale: {name}", values, "finite numbers")
    if len(scale.mean) != len(scale.std):
        raise invalid("scale: std", scale.std, f"{len(scale.mean)} numbers, one for each mean")
    if not all(value > 0 for value in scale.std):
        raise invalid("scale: std", scale.std, "numbers above 0")
    if not is_number(scale.unit) or scale.unit <= 0:
        raise invalid("scale: unit", scale.unit, "a number above 0, such as 255 for uint8 pixels")
