"""Why a user's module fails when it is called or differentiated, in plain words instead of PyTorch's internals."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lthfunc.errors import UnfitInputsError, UserError, failing_as
from lthfunc.printable import dtype_name
from lthfunc.tracebacks import first_line, user_location

#: An expression -> what an error means to the module's author. It is looked for in PyTorch's message and, a line each,
#: PyTorch's files in the traceback; the first match counts.
_MEANINGS = {
    r"torch/utils/checkpoint\.py\n": "torch.utils.checkpoint cannot be used, since gradients are taken by torch.func; "
    "call the function itself, which gives the same numbers and takes more memory",
    "yet support saved tensor hooks": "saved-tensor hooks cannot be used, since gradients are taken by torch.func; "
    "leave them out",
    r"(?s)setup_context.*torch/utils/hooks\.py\n": "backward hooks cannot be used, since gradients are taken by "
    "torch.func; remove them",
    "must override the setup_context": "an autograd.Function needs forward(...) and setup_context(ctx, inputs, output) "
    "apart, as torch.func takes it, and generate_vmap_rule = True or a vmap of its own",
    r"Tensor\.requires_grad_\(\)": "requires_grad_() cannot be called, since gradients are taken by torch.func; "
    "torch.func.grad gives a gradient within forward",
    "retain_grad": "retain_grad() keeps what nobody reads; leave it out",
    r"`\.data`": "weights are set by way of .data; write weight.copy_(...) within torch.no_grad() instead",
    "inference tensor|[Ii]nference mode": "nothing can be trained through torch.inference_mode(); torch.no_grad() does "
    "for what takes no gradient",
    "register a hook on a tensor that doesn't require grad": "a hook is registered on a tensor that takes no gradient, "
    "as in evaluation; ask h.requires_grad before",
    "does not require grad and does not have a grad_fn": "a gradient is taken in forward, and in evaluation there are "
    "none; torch.func.grad gives it there too",
    "modified by an inplace operation": "something is changed in place that its gradient needs; write it without the _ "
    "or inplace=True",
}
#: PyTorch's messages about different dtypes.
_UNLIKE = re.compile(r"dtype|scalar type|Input type|same type|FloatTensor|DoubleTensor")


class DtypeMismatchError(UserError):
    """A module whose parameters and inputs have different dtypes, which it does not convert."""


def explained_error(
    error: Exception, module: nn.Module, leaves: Iterable[Any], args: Sequence[Any]
) -> UserError | None:
    """The error in plain words, or None for an unknown one. leaves, args: what the module was called with."""
    if isinstance(error, UserError):
        return None
    text = str(error)
    head = f"{type(module).__name__}{failing_layer(error, module)}{user_location(error)}"
    types = dtype_mismatch(leaves, args) if _UNLIKE.search(text) else None
    if types is not None:
        return DtypeMismatchError(f"{head}: {types}; convert one of them, with module.float() or inputs.double()")
    known = _meaning(error)
    return None if known is None else UserError(f"{head}: {known}")


def describe_failure(error: Exception, *modules: nn.Module) -> str:
    """Where and why a call failed: " in fc1, Linear(…) (line 3 of net.py: …): message"."""
    return f"{failing_layer(error, *modules)}{user_location(error)}: {_meaning(error) or first_line(error)}"


def failing(what: str, *modules: nn.Module) -> AbstractContextManager[None]:
    """Whatever the block raises as one line: `what`, where and why it fails.

    modules: in whose traceback the layer is looked for. Raises UserError.
    """
    return failing_as(lambda error: f"{what}{describe_failure(error, *modules)}")


def taking_inputs(name: str, shape: Sequence[int], *modules: nn.Module) -> AbstractContextManager[None]:
    """`failing`, for a call on inputs of this shape. Raises UnfitInputsError."""
    what = f"{name} cannot take inputs of shape {tuple(shape)}"
    return failing_as(lambda error: f"{what}{describe_failure(error, *modules)}", UnfitInputsError)


def _meaning(error: Exception) -> str | None:
    """What a known error means to the author of the module."""
    files = (Path(frame.filename).as_posix() for frame in traceback.extract_tb(error.__traceback__))
    text = "\n".join((str(error), *(file for file in files if "/torch/" in file), ""))
    return next((meaning for words, meaning in _MEANINGS.items() if re.search(words, text)), None)


def no_gradient_message(what: str) -> str:
    """A message that the loss of something doesn't depend on the parameters, and what to look for."""
    return (
        f"the {what} depend on no parameter, so that there is no gradient: is forward under torch.no_grad(), or are "
        "its outputs, or the loss, detached or rounded?"
    )


def failing_layer(error: Exception, *modules: nn.Module) -> str:
    """The innermost named layer in the error's traceback: " in fc1, Linear(in_features=7, …)"; or ""."""
    names = {id(part): key for module in modules for key, part in module.named_modules() if key}
    at_work = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    found = [part for part in at_work if id(part) in names]
    return f" in {names[id(found[-1])]}, {repr(found[-1]).splitlines()[0]}" if found else ""


def dtype_mismatch(leaves: Iterable[Any], args: Sequence[Any]) -> str | None:
    """The dtypes of parameters and inputs in words, where they differ and both are real."""
    ours, theirs = (
        {leaf.dtype for leaf in tensors if isinstance(leaf, Tensor) and leaf.is_floating_point()}
        for tensors in (leaves, args)
    )
    if len(theirs) != 1 or not ours or theirs <= ours:
        return None
    return f"its parameters are {' and '.join(sorted(map(dtype_name, ours)))} and its inputs {dtype_name(theirs.pop())}"
