"""What annotations accept, by their text. Classes are known by name: this file needs neither torch nor their rooms."""

from __future__ import annotations

import inspect
import numbers
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lthfunc.hints import is_a, is_other, uncalled


class Kind(NamedTuple):
    """What an annotation accepts: in words, and how to tell."""

    words: str
    fits: Callable[[Any], bool]


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number, NumPy's and torch's scalars among them."""
    if isinstance(value, bool) or (hasattr(value, "shape") and value.shape != ()):
        return False
    try:
        operator.index(value)
    except (TypeError, RuntimeError):
        return False
    return True


def is_number(value: Any) -> bool:
    """Whether a value is a real number."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_tensor(value: Any) -> bool:
    return is_a(value, "Tensor", "torch")


def _is_module(value: Any) -> bool:
    return is_a(value, "Module", "torch")


def _is_tree(value: Any) -> bool:
    return isinstance(value, Mapping) and all(map(_is_tensor, value.values()))


def _is_masks(value: Any) -> bool:
    return _is_tree(value) and all(str(leaf.dtype) == "torch.bool" for leaf in value.values())


def _is_params(value: Any) -> bool:
    return _is_tree(value) and not (value and _is_masks(value))


def _is_batch(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(map(_is_tensor, value))


def _many(words: str, fits: Callable[[Any], bool]) -> Kind:
    def is_many(value: Any) -> bool:
        if isinstance(value, (str, bytes, Mapping)) or _is_tensor(value) or hasattr(value, "_fields"):
            return False
        return hasattr(value, "__len__") and hasattr(value, "__getitem__") and all(map(fits, value))

    return Kind(words, is_many)


def _function(kind: str, *takes: str) -> Kind:
    """A function of so many arguments, that isn't one that makes such functions."""

    def fits(value: Any) -> bool:
        if _is_module(value):  # nn.CrossEntropyLoss() is a function of outputs and targets
            return takes == ("outputs", "targets")
        if not callable(value) or isinstance(value, type) or uncalled(value, kind):
            return False
        try:
            signature = inspect.signature(value)
            signature.bind(*takes)
        except TypeError:
            return False
        except ValueError:  # builtins may not tell
            return True
        return not is_other(tuple(signature.parameters), takes)

    return Kind(f"a function of ({', '.join(takes)})", fits)


def _instance(name: str, words: str) -> Kind:
    return Kind(words, lambda value: is_a(value, name))


def _one_of(*names: str) -> Kind:
    return Kind(" or ".join(names), lambda value: isinstance(value, str) and value in names)


_FILE = Kind("a path", lambda value: isinstance(value, str) or hasattr(value, "__fspath__"))
_FUNCTION = Kind("a function", lambda value: callable(value) and not isinstance(value, type))

#: By annotation. One that is not here accepts anything.
KINDS: dict[str, Kind] = {
    "None": Kind("None", lambda value: value is None),
    "int": Kind("a whole number", is_whole),
    "float": Kind("a number", is_number),
    "str": Kind("a string", lambda value: isinstance(value, str)),
    "Path": _FILE,
    "os.PathLike[str]": _FILE,
    "Sequence[float]": _many("a list of numbers", is_number),
    "tuple[float, ...]": _many("a list of numbers", is_number),
    "Sequence[int]": _many("a list of whole numbers", is_whole),
    "tuple[int, ...]": _many("a tuple such as (1, 28, 28)", is_whole),
    "Sequence[str]": _many("a list of names or patterns", lambda value: isinstance(value, str)),
    "Sequence[Tensor]": _many("a list of tensors", _is_tensor),
    "Sequence[Batch]": _many("a list of batches (inputs, targets)", _is_batch),
    "Sequence[TrainState]": _many("a list of TrainStates", lambda value: is_a(value, "TrainState")),
    "Model": _instance("Model", "a Model"),
    "TrainState": _instance("TrainState", "a TrainState"),
    "Ticket": _instance("Ticket", "a Ticket"),
    "Split": _instance("Split", "a Split, such as data.test"),
    "Trainer": _instance("Trainer", "a Trainer (lf.make_trainer)"),
    "Plan": _instance("Plan", "a Plan"),
    "Start": _instance("Start", "a Start"),
    "Exchange": _instance("Exchange", "an Exchange (lf.over)"),
    "Costs": _instance("Costs", "Costs"),
    "Optimizer": _instance("Optimizer", "an lthfunc optimiser, such as lf.adam(1.2e-3)"),
    "Schedule": Kind("a table of rates, such as lf.cosine(lr, steps)", _is_tensor),
    "Tensor": Kind("a tensor", _is_tensor),
    "nn.Module": Kind("an nn.Module", _is_module),
    "Params": Kind("a dict of tensors, one for each parameter", _is_params),
    "Buffers": Kind("a dict of tensors, one for each buffer", _is_tree),
    "Masks": Kind("a dict of bool tensors", _is_masks),
    "Mapping[str, Any]": Kind("a dict", lambda value: isinstance(value, Mapping)),
    "Mapping[str, Tensor]": Kind("a dict of tensors", _is_tree),
    "Mapping[str, float]": Kind(
        "a dict of rates by pattern", lambda value: isinstance(value, Mapping) and all(map(is_number, value.values()))
    ),
    "Score": _function("Score", "params", "masks"),
    "Allocate": _function("Allocate", "scores", "masks", "fraction"),
    "Select": _function("Select", "scores", "masks", "keep"),
    "Loss": _function("Loss", "outputs", "targets"),
    "Metric": _function("Metric", "outputs", "targets"),
    "LossOfParams": _function("LossOfParams", "params", "batch"),
    "Transformation": _function("Transformation", "state"),
    "Callable[[Params, Tensor], Any]": _function("forward", "params", "inputs"),
    "Callable[[TrainState, Situation], Score]": _function("score of a plan", "trained", "now"),
    "Augment": _FUNCTION,
    "Observer": _FUNCTION,
    "Observers": _FUNCTION,
    "Making": Kind(
        "an engine's name, or a function that makes one", lambda value: isinstance(value, str) or callable(value)
    ),
    "Precision": _one_of("fp32", "tf32", "bf16"),
    "OnNonfinite": _one_of("stop", "skip"),
}
