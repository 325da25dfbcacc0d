"""From a pure function to machine code: traced whole, compiled by Inductor, called without any check.

Not through `torch.compile`: its guards cost a small step 5 to 10 %, and its tracing of Python takes longer than
all the rest. What it guards against cannot happen here, since an engine calls a program only with the shapes,
dtypes and strides that it was made for.
"""

from __future__ import annotations

import linecache
import logging
import os
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import optree
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from lthfunc import errors
from lthfunc.errors import UserError
from lthfunc.training.engines.pooling import max_pool_backward

#: Takes the tensors it was traced with, or others like them.
Program = Callable[..., Any]
#: Inductor would check sizes and strides in every call: 1 % of a small step, for what cannot happen.
_SETTINGS = {"size_asserts": False}
#: Operations that are traced as something that compiles to faster code.
_RULES = {torch.ops.aten.max_pool2d_with_indices_backward.default: max_pool_backward}
#: Where a user's mistake cannot be.
_OTHERS = tuple(str(Path(str(module.__file__)).parent) for module in (torch, optree, errors, os))


def compiled(function: Callable[..., Any], example: Sequence[Tensor], name: str) -> Program:
    """Compile a function of flat tensor arguments, which may write into them by `copy_`.

    Inductor keeps its results on disk, so a later process compiles nothing.

    Raises UserError where the function cannot be traced (its control flow depends on data, say), with the line.
    """
    # On machines without a GPU the compiler remarks on it; its errors still come through.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    try:
        graph = make_fx(function, _RULES, tracing_mode="fake", _allow_non_fake_inputs=True)(*example)
    except Exception as error:
        raise UserError(
            f"--engine: {name} cannot be compiled{place_of(error)}: {first_line(error)}; --engine eager runs it"
        ) from error
    try:
        return torch._inductor.standalone_compile(
            graph, list(example), dynamic_shapes="from_example_inputs", options={"config_patches": _SETTINGS}
        )
    except Exception as error:
        raise UserError(f"--engine: {name} cannot be compiled: {first_line(error)}; --engine eager runs it") from error


def place_of(error: BaseException) -> str:
    """The line outside of torch and of this library that an error comes from, in brackets, or nothing."""
    return users_line((frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(error.__traceback__))


def users_line(frames: Iterable[tuple[str, int]]) -> str:
    """The innermost of these lines (file, number) outside of torch and of this library: " (line 3 of net.py: …)"."""
    outside = [frame for frame in frames if _foreign(frame[0])]
    if not outside:
        return ""
    file, number = outside[-1]
    return f" (line {number} of {file}: {linecache.getline(file, number).strip()})"


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _foreign(file: str) -> bool:
    # Installed packages lie in a folder below Python's own library.
    others = [folder for folder in _OTHERS if file.startswith(folder)]
    return not others or (others == [_OTHERS[-1]] and "site-packages" in file)
