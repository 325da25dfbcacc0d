"""Wrong arguments in words, and what the user may have meant."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

#: The functions that replace torch's optimisers.
_OPTIMIZERS = {"Adam": "lf.adam(lr)", "AdamW": "lf.adamw(lr)", "SGD": "lf.sgd(lr)", "Muon": "lf.muon(lr)"}
#: What makes values of these kinds.
_MAKERS = {
    "Callable[[Params, Tensor], Any]": "lf.forward_of(model, buffers) makes one",
    "Callable[[TrainState, RoundContext], Score]": "each round asks for its score: lambda trained, now: lf.magnitude",
    "Sequence[Batch]": "lf.sample_batches(data, batch_size, count) draws some",
}
#: The names of function types in annotations.
_FUNCTIONS = ("Score", "Allocate", "Select", "Growth", "Loss", "Metric", "Transformation", "LossOfParams", "Rewind")


def is_a(value: Any, name: str, package: str = "lthfunc") -> bool:
    """Whether a value is of a class of this name, of lthfunc or of another package."""
    return any(each.__name__ == name and each.__module__.partition(".")[0] == package for each in type(value).__mro__)


def uncalled(value: Any, kind: str) -> bool:
    """Whether a value is a function that makes such an object and was not called."""
    return bool(getattr(value, "__annotations__", {}).get("return") == kind)


def is_other(names: tuple[str, ...], takes: tuple[str, ...]) -> bool:
    """Whether a function's argument names are those of another kind of function than one that takes these."""
    of_outputs = (("outputs", "targets"), ("input", "target"))
    others = (
        *of_outputs, ("params", "batch"), ("params", "masks"), ("params", "inputs"), ("scores", "masks", "keep"),
        ("scores", "masks", "fraction"),
    )  # fmt: skip
    mine = of_outputs if takes[:2] in of_outputs else (takes,)
    found = next((other for other in others if names[: len(other)] == other), None)
    return found is not None and found not in mine


def described(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None or isinstance(value, (bool, int, float, str)) or is_a(value, "Scale"):
        text = repr(value)
        return text if len(text) <= 60 else f"a {type(value).__name__} of {len(text)} characters"
    if is_a(value, "Module", "torch"):
        return f"an nn.Module ({type(value).__name__})"
    if is_a(value, "Tensor", "torch"):
        return f"a tensor of shape {tuple(value.shape)}"
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__}"
    if isinstance(value, Mapping):
        return _tree(value)
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        kinds = list(dict.fromkeys(type(each).__name__ for each in value))
        return f"a {type(value).__name__} of {len(value)}" + (f" ({', '.join(kinds[:3])})" if kinds else "")
    article = "an" if type(value).__name__[:1].lower() in "aeiou" else "a"
    return f"{article} {type(value).__name__}"


def _tree(value: Mapping[Any, Any]) -> str:
    leaves = list(value.values())
    if leaves and all(is_a(leaf, "Tensor", "torch") for leaf in leaves):
        return "masks" if all(str(leaf.dtype) == "torch.bool" for leaf in leaves) else "a dict of tensors"
    return f"a {type(value).__name__} of {len(leaves)}"


def hint(value: Any, annotation: str) -> str:
    """What to write instead, or "" if that is unknown. annotation: the argument's."""
    if annotation in _MAKERS:
        return _MAKERS[annotation]
    wanted = {part.strip() for part in annotation.split("|")}
    if "Optimizer" in wanted:
        return _optimizer(value)
    if wanted & {"LayerPruning", "BlockBudgets"}:
        return f"call it: lf.{value.__name__}(…)" if any(uncalled(value, each) for each in wanted) else ""
    if wanted & {*_FUNCTIONS}:
        return _of_function(value, next(iter(wanted & {*_FUNCTIONS})))
    if "Model" in wanted:
        return _model(value)
    if "TrainState" in wanted or "Ticket" in wanted:
        return _state(value, "Ticket" in wanted and "TrainState" not in wanted)
    for part, words in (("Masks", "masks"), ("Params", "params"), ("Buffers", "buffers")):
        if part in wanted and hasattr(value, words):
            return f"pass its .{words}"
    if "Params" in wanted and is_a(value, "Module", "torch"):
        return "pass dict(net.named_parameters()), or the params of an lf.init state"
    if "nn.Module" in wanted and is_a(value, "Model"):
        return "it is a model already"
    if "nn.Module" in wanted and isinstance(value, type):
        return f"call it: {value.__name__}(…)"
    if "Schedule" in wanted and callable(value):
        return f"call it: lf.{getattr(value, '__name__', 'cosine')}(…)"
    if "Schedule" in wanted and (hasattr(value, "__next__") or is_a(value, "Module", "torch")):
        return "an optimiser here takes a rate, and no parameters"
    if "Schedule" in wanted and isinstance(value, (list, tuple)):
        return "a tensor holds the rates of all steps"
    if "Mapping[str, float]" in wanted and isinstance(value, float):
        return "the rate of all layers is prune's fraction"
    if annotation == "tuple[int, ...]" and isinstance(value, int):
        return f"({value},)"
    return ""


def _optimizer(value: Any) -> str:
    names = [each.__name__ for each in (value if isinstance(value, type) else type(value)).__mro__]
    if "Optimizer" in names and not is_a(value, "Optimizer"):
        return f"{_OPTIMIZERS.get(names[0], 'lf.sgd(lr), lf.adam(lr) and others')} takes its place"
    if uncalled(value, "Part"):
        return f"call it: lf.{value.__name__}(…)"
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return "give them one by one: lf.chain(*parts)"
    if uncalled(value, "Optimizer"):
        return f"call it: lf.{value.__name__}(lr)"
    if isinstance(value, str) and value.lower() in ("sgd", "adam", "adamw", "lion", "muon"):
        return f"pass one: lf.{value.lower()}(lr)"
    return ""


def _of_function(value: Any, kind: str) -> str:
    if kind == "LossOfParams" and (is_a(value, "Model") or callable(value)):
        return "lf.loss_of(model, buffers) makes one"
    if isinstance(value, type):
        return f"call it: {value.__name__}(…)"
    if isinstance(value, (list, tuple)) and kind == "Transformation" and not hasattr(value, "_fields"):
        return "give them one by one: lf.compose(*transformations)"
    if uncalled(value, kind):
        return f"call it: lf.{value.__name__}(…)" if value.__module__.startswith("lthfunc") else "call it first"
    if isinstance(value, str):
        name = value.replace("-", "_")
        library: Any = sys.modules.get("lthfunc")
        if name not in getattr(library, "__all__", ()):
            return ""
        return f"pass the function: lf.{name}{'(…)' if uncalled(getattr(library, name), kind) else ''}"
    if is_a(value, "TrainState"):
        return "apply the transformation to it: lf.compose(…)(state)"
    return ""


def _model(value: Any) -> str:
    if is_a(value, "Module", "torch"):
        return "make one of it: lf.from_module(net)"
    if isinstance(value, type):
        return f"make one: lf.from_module({value.__name__}(…))"
    if is_a(value, "TrainState") or is_a(value, "Ticket"):
        return "the model comes from lf.from_module(net)"
    return ""


def _state(value: Any, ticket: bool) -> str:
    if isinstance(value, tuple) and not hasattr(value, "_fields") and value:
        if ticket and is_a(value[0], "Ticket"):
            return "lf.load_ticket returns (ticket, metadata); pass the ticket"
        if is_a(value[0], "TrainState"):
            return "lf.take_steps returns (state, loss); pass the state"
        if is_a(value[0], "Ticket"):
            return "lf.load_ticket returns (ticket, metadata); pass ticket.to_state()"
    if ticket and is_a(value, "TrainState"):
        return "make one of it: lf.ticket(state)"
    if is_a(value, "Ticket"):
        return "make one of it: ticket.to_state(step=0)"
    if is_a(value, "Fit"):
        return "pass its .state"
    if is_a(value, "Model"):
        return "make one: lf.init(model, seed)"
    if is_a(value, "Module", "torch"):
        return "make one: lf.init(lf.from_module(net), seed)"
    if isinstance(value, Mapping):
        return "pass the whole state, params, buffers and masks together"
    if callable(value):
        return "give it a state first, lf.init(model, seed)"
    return ""
