"""From a pure function to machine code: traced whole, compiled by Inductor, called without any check.

Not through `torch.compile`: its guards cost a small step 5 to 10 %, and its tracing of Python takes longer than
all the rest. What it guards against cannot happen here, since an engine calls a program only with the shapes,
dtypes and strides that it was made for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from lthfunc.errors import UserError
from lthfunc.tracebacks import first_line, user_location
from lthfunc.training.engines.aliases import free_views
from lthfunc.training.engines.gemm import addmm, lower_gemms, mm
from lthfunc.training.engines.im2col import convolution_backward
from lthfunc.training.engines.pooling import max_pool, max_pool_backward

#: Takes the tensors it was traced with, or others like them.
CompiledFunction = Callable[..., Any]
#: Inductor would check sizes and strides in every call: 1 % of a small step, for what cannot happen.
_SETTINGS = {"size_asserts": False}
_ATEN = torch.ops.aten
#: Operations that are traced as something faster, where there is any.
_RULES: dict[Any, Callable[..., Any]] = {
    _ATEN.addmm.default: addmm,
    _ATEN.convolution_backward.default: convolution_backward,
    _ATEN.max_pool2d_with_indices.default: max_pool,
    _ATEN.max_pool2d_with_indices_backward.default: max_pool_backward,
    _ATEN.mm.default: mm,
}


def compiled(function: Callable[..., Any], example: Sequence[Tensor], name: str) -> CompiledFunction:
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
            f"engine: {name} cannot be compiled{user_location(error)}: {first_line(error)}; the engine eager runs it"
        ) from error
    free_views(graph.graph)  # Inductor prefers channels last, whatever the trace had
    lower_gemms()
    try:
        return torch._inductor.standalone_compile(
            graph, list(example), dynamic_shapes="from_example_inputs", options={"config_patches": _SETTINGS}
        )
    except Exception as error:
        raise UserError(f"engine: {name} cannot be compiled: {first_line(error)}; the engine eager runs it") from error
