"""Checks of the arguments of public functions: a wrong argument raises an error of one line that names it.

Before its function runs, `public` checks that each argument is what its annotation says (`argument_kinds.py`).
Functions that every training step calls are not checked: engines take them from a trainer that was.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import operator
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import torch

from lthfunc.argument_hints import described, hint, is_a
from lthfunc.argument_kinds import KINDS, is_number, is_whole
from lthfunc.errors import ArgumentError, UserError, invalid
from lthfunc.printable import first_few

P = ParamSpec("P")
R = TypeVar("R")

#: The ranges of numbers: in words, as a check, and the arguments that have it, with their function where others of that
#: name have another. A list of numbers has the range of each.
_RANGES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    (
        "a whole number of at least 1", lambda value: value >= 1,
        "steps epochs until eval_every batch_size count points every block multiple has_n_of_m.m geometric.rounds",
    ),
    (
        "a whole number of at least 0", lambda value: value >= 0,
        "rounds step anchor_step min_layer_weights milestones warmup.steps generate.top_k",
    ),
    (
        "a number of at least 0", lambda value: value >= 0,
        "weight_decay eps others gamma start end damping output_rate movement.lr generate.temperature",
    ),
    ("a number above 0", lambda value: value > 0, "lr temperature max_norm limit radius"),
    ("a number in [0, 1)", lambda value: 0 <= value < 1, "fraction momentum betas ema.decay"),
    ("a number in (0, 1]", lambda value: 0 < value <= 1, "density densities layerwise_decay.decay lookahead.share"),
    (
        "a number in [0, 1]", lambda value: 0 <= value <= 1,
        "drop_fraction initial label_smoothing rise fall distillation.weight",
    ),
    ("a number between 0 and 1, both excluded", lambda value: 0 < value < 1, "by_rate.rate"),
)  # fmt: skip
_RANGE_OF = {name: (words, holds) for words, holds, names in _RANGES for name in names.split()}
#: Arguments that must belong to one network, and what is compared.
_ALIKE = {
    "TrainState": "params", "Ticket": "params", "Ticket | TrainState": "params", "Params": "params", "Masks": "masks",
}  # fmt: skip


def public(function: Callable[P, R]) -> Callable[P, R]:
    """Check the arguments of a public function whenever it is called.

    Where it returns a Transformation, the state that this is applied to is checked as well. Raises ArgumentError, a
    UserError and a TypeError, for an argument of another type, and UserError for one that is out of range or of another
    network than the arguments beside it.
    """
    name = function.__name__
    known: list[inspect.Signature] = []

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():  # whoever compiles a call has made it before
            return function(*args, **kwargs)
        if not known:
            known.append(inspect.signature(function))
        signature = known[0]
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ArgumentError(f"{name}: {_unbound(signature, kwargs, str(error))}") from None
        given = bound.arguments
        for key, value in list(given.items()):
            parameter = signature.parameters[key]
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                continue
            many = parameter.kind is inspect.Parameter.VAR_POSITIONAL
            for each in value if many else (value,):
                if each is not parameter.default:
                    check_argument(name, key, each, str(parameter.annotation))
            if type(value) is not int and "int" in _alternatives(str(parameter.annotation)) and is_whole(value):
                given[key] = operator.index(value)  # of NumPy or torch
        if name != "with_new_head":  # which brings a ticket to another network
            _check_alike(name, given, signature)
        result = function(*bound.args, **bound.kwargs)
        if signature.return_annotation == "Transformation":
            return _of_states(name, result)  # type: ignore[return-value, arg-type]
        return result

    return called


def check_argument(function: str, argument: str, value: Any, annotation: str) -> None:
    """Raise ArgumentError for a value that its annotation doesn't accept, and UserError for one out of range."""
    kinds = [KINDS.get(each) for each in _alternatives(annotation)]
    known = [kind for kind in kinds if kind is not None]
    if len(known) < len(kinds):  # what is not known here is believed
        return
    if not any(kind.fits(value) for kind in known):
        words = " or ".join(dict.fromkeys(kind.words for kind in known if kind.words != "None"))
        helps = hint(value, annotation)
        raise ArgumentError(
            f"{function}: {argument} must be {words}, not {described(value)}" + (f"; {helps}" if helps else "")
        )
    for name in ("TrainState", "Ticket"):
        if is_a(value, name):
            _check_whole(function, argument, value)
    _check_range(function, argument, value)


def _check_whole(function: str, argument: str, state: Any) -> None:
    """Raise ArgumentError where a part of a state or ticket has another type, or masks don't match the params."""
    for part, kind in (("params", "Params"), ("buffers", "Buffers"), ("masks", "Masks")):
        found = getattr(state, part)
        if not KINDS[kind].fits(found):
            raise ArgumentError(f"{function}: {argument}.{part} must be {KINDS[kind].words}, not {described(found)}")
    step = getattr(state, "step", None)
    if "step" in state._fields and not (isinstance(step, torch.Tensor) and not step.is_floating_point()):
        raise ArgumentError(
            f"{function}: {argument}.step must be an integer tensor, such as torch.tensor(0), not {described(step)}"
        )
    _check_masks_fit(function, f"{argument}.masks", state.masks, state.params)


def _check_masks_fit(function: str, argument: str, masks: Mapping[str, Any], leaves: Mapping[str, Any]) -> None:
    for name, mask in masks.items():
        if name not in leaves:
            raise UserError(
                f"{function}: {argument}: {name!r} is not a parameter of this network ({first_few(list(leaves))})"
            )
        if mask.shape != leaves[name].shape:
            shapes = f"of shape {tuple(mask.shape)}, the parameter {tuple(leaves[name].shape)}"
            raise UserError(f"{function}: {argument}: {name!r} is {shapes}")


def check_fields(plan: Any) -> None:
    """Check the fields of a named tuple as `public` checks arguments."""
    for name, annotation in type(plan).__annotations__.items():
        text = annotation if isinstance(annotation, str) else annotation.__forward_arg__
        check_argument(type(plan).__name__, name, getattr(plan, name), text)


def check_state_fits(function: str, model: Any, state: Any) -> None:
    """Raise UserError where the names or shapes of a state's params are not the model's."""
    params = dict(model.training.named_parameters())
    _check_same_leaves(function, "state", state.params, f"the model {model.name}", params)


def _check_same_leaves(
    function: str, argument: str, mine: Mapping[str, Any], other: str, theirs: Mapping[str, Any]
) -> None:
    shapes = [{name: tuple(leaf.shape) for name, leaf in leaves.items()} for leaves in (mine, theirs)]
    if shapes[0] == shapes[1]:
        return
    name = next(name for name in {**shapes[0], **shapes[1]} if shapes[0].get(name) != shapes[1].get(name))
    words = [found.get(name, "missing") for found in shapes]
    raise UserError(
        f"{function}: {argument} and {other} are of different networks: {name} is {words[0]} and {words[1]}"
    )


def _check_alike(function: str, given: Mapping[str, Any], signature: inspect.Signature) -> None:
    kinds = {key: str(signature.parameters[key].annotation) for key in given}
    before: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for key, kind in kinds.items():
        if kind == "Model":
            model = given[key]
            before["params"] = (f"the model {model.name}", dict(model.training.named_parameters()))
    for key, kind in kinds.items():
        if kind in _ALIKE and given[key] is not None:
            group, value = _ALIKE[kind], given[key]
            leaves = value if kind in ("Params", "Masks") else value.params
            if group in before:
                _check_same_leaves(function, key, leaves, *before[group])
            else:
                before[group] = (key, leaves)
    masks = given["masks"] if kinds.get("masks") == "Masks" else getattr(given.get("state"), "masks", None)
    if masks is not None:
        if "masks" in given and "params" in before:
            _check_masks_fit(function, "masks", masks, before["params"][1])
        for key, kind in kinds.items():
            if kind in ("Scores", "KeepCounts", "Mapping[str, Tensor | int]"):
                _check_for_each(function, key, given[key], masks, shapes=kind == "Scores")
    _check_buffers(function, given, kinds)


def _check_for_each(
    function: str, argument: str, leaves: Mapping[str, Any], masks: Mapping[str, Any], *, shapes: bool
) -> None:
    """Raise UserError for a mask without a leaf, or with one of another shape."""
    for name, mask in masks.items():
        if name not in leaves:
            raise UserError(f"{function}: {argument}: {name!r}, which has a mask, is missing")
        if shapes and leaves[name].shape != mask.shape:
            of = f"of shape {tuple(leaves[name].shape)}, its mask {tuple(mask.shape)}"
            raise UserError(f"{function}: {argument}: {name!r} is {of}")


def _check_buffers(function: str, given: Mapping[str, Any], kinds: Mapping[str, str]) -> None:
    """Raise UserError where a model's buffers are missing, since the module's own would silently replace them."""
    model = next((given[key] for key, kind in kinds.items() if kind == "Model"), None)
    if model is None:
        return
    needed = dict(model.evaluating.named_buffers())
    for key, kind in kinds.items():
        if kind in ("TrainState", "Ticket", "Ticket | TrainState", "Buffers"):
            buffers = given[key] if kind == "Buffers" else given[key].buffers
            for name, leaf in needed.items():
                if name not in buffers:
                    raise UserError(f"{function}: {key}: the buffer {name!r} of {model.name} is missing")
                if buffers[name].shape != leaf.shape:
                    _check_same_leaves(function, f"{key}.buffers", buffers, f"the model {model.name}", needed)


def _of_states(name: str, transformation: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def transformed(state: Any) -> Any:
        check_argument(f"{name}(…)", "state", state, "TrainState")
        return transformation(state)

    return functools.update_wrapper(transformed, transformation)


def _unbound(signature: inspect.Signature, kwargs: Mapping[str, Any], error: str) -> str:
    """Why a call doesn't match a signature."""
    names = signature.parameters
    if not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in names.values()):
        unknown = next((name for name in kwargs if name not in names), None)
        if unknown is not None:
            near = difflib.get_close_matches(unknown, names, n=1)
            guess = f"; did you mean {near[0]!r}?" if near else ""
            return f"unknown argument {unknown!r}{guess} (known: {', '.join(names)})"
    by_name = [name for name, each in names.items() if each.kind is inspect.Parameter.KEYWORD_ONLY]
    return error + (f" (given by name: {', '.join(by_name)})" if by_name and "positional" in error else "")


def _alternatives(annotation: str) -> list[str]:
    """`A | B[C | D]` as A and B[C | D]."""
    parts, depth = [""], 0
    for letter in annotation:
        depth += (letter in "[(") - (letter in "])")
        if letter == "|" and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _check_range(function: str, argument: str, value: Any) -> None:
    option = f"{function}: {argument}"
    if argument in ("batches", "densities") and value is not None and len(value) == 0:
        raise invalid(option, value, "at least one")
    if argument == "shape" and isinstance(value, (tuple, list)) and not all(side > 0 for side in value):
        raise invalid(option, value, "sides of at least 1")
    found = _RANGE_OF.get(f"{function}.{argument}", _RANGE_OF.get(argument))
    if found is None:
        return
    words, holds = found
    for each in value if hasattr(value, "__len__") and not is_a(value, "Tensor", "torch") else (value,):
        if (is_whole(each) or is_number(each)) and not holds(each):
            meant = argument in ("fraction", "density", "densities") and 1 < each <= 100
            raise invalid(option, each, words + (f"; {each:g} % is {each / 100:g}" if meant else ""))
