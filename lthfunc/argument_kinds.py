"""What annotations accept, by their text. Classes are known by name, so that torch is not imported."""

from __future__ import annotations

import inspect
import math
import numbers
import operator
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from lthfunc.argument_hints import is_a, is_other, uncalled


class ArgumentKind(NamedTuple):
    """What an annotation accepts: in words, and a check."""

    words: str
    fits: Callable[[Any], bool]


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number, including NumPy's and torch's scalars."""
    if isinstance(value, bool) or (hasattr(value, "shape") and value.shape != ()) or type(value).__name__ == "ndarray":
        return False
    try:
        operator.index(value)
    except (TypeError, RuntimeError):
        return False
    return True


def is_number(value: Any) -> bool:
    """Whether a value is a finite real number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool) or type(value).__name__ in ("bool_", "bool") or (is_whole(value) and value in (0, 1))


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
    if not (isinstance(value, (tuple, list)) and len(value) == 2 and all(map(_is_tensor, value))):
        return False
    return value[0].ndim > 0 and value[1].ndim > 0 and len(value[0]) == len(value[1])


def _many(words: str, fits: Callable[[Any], bool]) -> ArgumentKind:
    def is_many(value: Any) -> bool:
        if isinstance(value, (str, bytes, Mapping)) or _is_tensor(value) or hasattr(value, "_fields"):
            return False
        if not hasattr(value, "__len__") or not hasattr(value, "__getitem__") or getattr(value, "shape", None) == ():
            return False
        return all(map(fits, value))

    return ArgumentKind(words, is_many)


def _function(kind: str, *takes: str) -> ArgumentKind:
    """A function with these arguments, but not one that makes such functions."""

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

    return ArgumentKind(f"a function of ({', '.join(takes)})", fits)


def _instance(name: str, words: str = "") -> ArgumentKind:
    return ArgumentKind(words or f"a {name}", lambda value: is_a(value, name))


def _dict_of(words: str, fits: Callable[[Any], bool]) -> ArgumentKind:
    return ArgumentKind(words, lambda value: isinstance(value, Mapping) and all(map(fits, value.values())))


def _any_of(first: ArgumentKind, *others: ArgumentKind) -> ArgumentKind:
    """Any of these, in the words of the first."""
    return ArgumentKind(first.words, lambda value: any(kind.fits(value) for kind in (first, *others)))


def _one_of(*names: str) -> ArgumentKind:
    return ArgumentKind(" or ".join(names), lambda value: isinstance(value, str) and value in names)


def _is_scale(value: Any) -> bool:
    if not is_a(value, "Scale"):
        return False
    means, stds = value.mean, value.std
    many = isinstance(means, (tuple, list)) and isinstance(stds, (tuple, list)) and len(means) == len(stds) > 0
    return many and all(map(is_number, (value.unit, *means, *stds))) and all((value.unit, *stds))


def _is_device(value: Any) -> bool:
    """Whether a value can name a device; torch itself reports one that is unknown or not available."""
    return isinstance(value, str) or is_a(value, "device", "torch")


_DEVICE = ArgumentKind("a device, such as 'cpu' or 'cuda:0'", _is_device)
_FILE = ArgumentKind("a path", lambda value: isinstance(value, str) or hasattr(value, "__fspath__"))

#: By annotation; an annotation that is missing here accepts anything.
KINDS: dict[str, ArgumentKind] = {
    "None": ArgumentKind("None", lambda value: value is None),
    "int": ArgumentKind("a whole number", is_whole),
    "float": ArgumentKind("a number", is_number),
    "bool": ArgumentKind("True or False", _is_switch),
    "str": ArgumentKind("a string", lambda value: isinstance(value, str)),
    "Path": _FILE,
    "os.PathLike[str]": _FILE,
    "Sequence[float]": _many("a list of numbers", is_number),
    "tuple[float, ...]": _many("a list of numbers", is_number),
    "tuple[float, float]": ArgumentKind(
        "two numbers", lambda value: isinstance(value, (tuple, list)) and len(value) == 2 and all(map(is_number, value))
    ),
    "Sequence[int]": _many("a list of whole numbers", is_whole),
    "tuple[int, ...]": _many("a tuple such as (1, 28, 28)", is_whole),
    "Sequence[str]": _many("a list of names or patterns", lambda value: isinstance(value, str)),
    "Sequence[Tensor]": _many("a list of tensors", _is_tensor),
    "Sequence[Batch]": _many("a list of batches (inputs, targets)", _is_batch),
    **{
        f"Sequence[{name}]": _many(f"a list of {name}s", partial(is_a, name=name))
        for name in ("InputSpec", "TrainState")
    },
    "Sequence[AnyState]": _many(
        "a list of TrainStates", lambda value: is_a(value, "TrainState") or is_a(value, "PackedState")
    ),
    "Sequence[AnyFit]": _many("a list of Fits", lambda value: is_a(value, "Fit") or is_a(value, "PackedFit")),
    "Mapping[str, Start]": _dict_of("a dict of Starts", lambda value: is_a(value, "Start")),
    **{name: _instance(name) for name in ("Model", "TrainState", "Ticket", "Plan", "Fit")},
    "Split": _instance("Split", "a Split, such as data.test"),
    "Trainer": _instance("Trainer", "a Trainer (lf.make_trainer)"),
    "Start": ArgumentKind(
        "a Start of a function of (pruned, now)",
        lambda value: is_a(value, "Start") and _function("start", "pruned", "now").fits(value.make),
    ),
    "Checkpointer[Fit]": _instance("Checkpointer"),
    "MaskUpdates": _instance("MaskUpdates"),
    "NewMasks": _instance("NewMasks"),
    "DecodingProgram": _instance("DecodingProgram", "what lf.decoding_program(model, ticket, length) gives"),
    "LayerPruning": _instance("LayerPruning", "a LayerPruning, such as lf.wanda_pruning()"),
    "BlockBudgets": _instance("BlockBudgets", "BlockBudgets, such as lf.owl()"),
    "FlaxLayout": _instance("FlaxLayout", "what lf.flax_layout(model) gives"),
    "Dependencies": _instance("Dependencies", "what lf.dependencies(model, shape) gives"),
    "Sequence[DependencyGroup]": _many(
        "what lf.dependency_groups(model, shape) gives", partial(is_a, name="DependencyGroup")
    ),
    "PackedState": _instance("PackedState", "a PackedState, as lf.init_packed and lf.pack_state give it"),
    "Packed": _instance("Packed", "what lf.pack(params, masks) gives"),
    "Done": _instance("Done", "where an interrupted experiment stands"),
    "Scale": ArgumentKind(
        "a Scale of finite numbers, none of unit and std zero, with as many means as stds", _is_scale
    ),
    "torch.device": _DEVICE,
    "Collectives": _instance("Collectives", "Collectives (lf.collectives)"),
    "Costs": _instance("Costs", "Costs"),
    "Optimizer": _instance("Optimizer", "an lthfunc optimiser, such as lf.adam(1.2e-3)"),
    "Part": _instance("Part", "a part of a chain, such as lf.clip_by_global_norm(1.0)"),
    "Schedule": ArgumentKind("a table of rates, such as lf.cosine(lr, steps)", _is_tensor),
    "Tensor": ArgumentKind("a tensor", _is_tensor),
    "nn.Module": ArgumentKind("an nn.Module", _is_module),
    "Params": ArgumentKind("a dict of tensors, one for each parameter", _is_params),
    "Buffers": ArgumentKind("a dict of tensors, one for each buffer", _is_tree),
    "Masks": ArgumentKind("a dict of bool tensors", _is_masks),
    "Scores": ArgumentKind("a dict of tensors, a score for each weight", _is_params),
    "KeepCounts": ArgumentKind("a dict of counts as tensors, one for each layer", _is_params),
    "Mapping[str, int]": _dict_of("a dict of whole numbers", is_whole),
    "Mapping[str, Tensor | int]": _dict_of("a dict of whole numbers", is_whole),
    "Mapping[str, Cut]": ArgumentKind("the cuts of what lf.compact gives", lambda value: isinstance(value, Mapping)),
    "Mapping[str, tuple[int, ...]]": _dict_of(
        "a dict of shapes, such as (8, 6, 6)",
        lambda value: isinstance(value, (tuple, list)) and all(map(is_whole, value)),
    ),
    "Mapping[str, str]": _dict_of("a dict of names", lambda value: isinstance(value, str)),
    "Mapping[str, Any]": ArgumentKind("a dict", lambda value: isinstance(value, Mapping)),
    "Mapping[str, Tensor]": ArgumentKind("a dict of tensors", _is_tree),
    "Mapping[str, float]": _dict_of("a dict of rates by pattern", is_number),
    "Score": _function("Score", "params", "masks"),
    "Allocate": _function("Allocate", "scores", "masks", "fraction"),
    "Growth": _function("Growth", "name", "taken", "size", "count"),
    "Select": _function("Select", "scores", "masks", "keep"),
    "Loss": _any_of(_function("Loss", "outputs", "targets"), _function("Loss", "outputs", "targets", "context")),
    "Metric": _function("Metric", "outputs", "targets"),
    "LossOfParams": _function("LossOfParams", "params", "batch"),
    "Transformation": _function("Transformation", "state"),
    "Rewind": _function("Rewind", "state", "anchor")._replace(words="a function (state, anchor), such as lf.rewound"),
    "Callable[[Params, Tensor], Any]": _function("forward", "params", "inputs"),
    "Callable[[TrainState, RoundContext], Score]": _function("score of a plan", "trained", "now"),
    "Initialiser": _function("Initialiser", "module", "params", "seed"),
    "BlockSelect": _function("BlockSelect", "scores", "density"),
    "ShardedSelect": _function("ShardedSelect", "scores", "masks", "fraction"),
    "Callable[[str, Tensor], bool]": _function("rule", "name", "parameter"),
    "Augment": _any_of(
        _function("Augment", "inputs", "key"),
        _function("Augment", "inputs", "key", "first"),
        _function("Augment", "inputs", "targets", "key"),
        _function("Augment", "inputs", "targets", "key", "first"),
    ),
    "Callable[[str, Count], object]": _function("on_block", "block", "count"),
    "Observer": _function("Observer", "step", "point"),
    "Observers": _function("Observers", "step", "points"),
    "Announce": _function("Announce", "task"),
    "Making": ArgumentKind(
        "an engine's name, or a function that makes one",
        lambda value: isinstance(value, str) or _function("engine", "work").fits(value),
    ),
    "Precision": _one_of("fp32", "tf32", "bf16"),
    "OnNonfinite": _one_of("stop", "skip"),
}
