"""Peers that compute only with surviving weights: SparseProp in training, CSR products and ONNX in inference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import lthfunc as lf
from lthfunc.deployment.timing import TimedFunction
from lthfunc.trees.layer_inputs import last_inputs
from lthfunc.trees.types import Batch, TrainState

from .peers import loaded, trained

#: SparseProp asks for at least 80 % of zeros, and ends the process on layers that are nearly empty.
SPARSEPROP_DENSITIES = (0.03, 0.2)


def why_no_sparseprop() -> str | None:
    """Why SparseProp cannot take part, or None."""
    try:
        import sparseprop  # noqa: F401
    except (ImportError, OSError):
        return "sparseprop is not installed"
    return None


def sparse_module(layer: nn.Module, shape: Sequence[int]) -> nn.Module:
    """SparseProp's own choice for a linear or convolution layer on inputs of this shape."""
    from sparseprop.modules import sparsify_if_faster

    chosen: nn.Module = sparsify_if_faster(layer, tuple(shape), include_dense=False)
    return chosen


def sparseprop(model: lf.Model, state: TrainState, ready: Sequence[Batch]) -> TimedFunction:
    """A network with SparseProp's layers in place of its own, autograd, fused Adam."""
    module = loaded(model, state)
    names = [name for name, layer in module.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    for name, read in last_inputs(module, names, lambda copied: copied(ready[0][0])).items():
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, sparse_module(module.get_submodule(name), read.shape))
    return trained(module, ready)


def scipy_csr(state: TrainState, x: Tensor) -> TimedFunction:
    """A network of linear layers by scipy's CSR products."""
    import numpy as np
    from scipy import sparse

    layers = [(sparse.csr_matrix(w.numpy()), b.numpy()[:, None]) for w, b in _linear(state)]
    flat = np.ascontiguousarray(x.flatten(1).T.numpy())
    return _products(layers, flat, lambda value: np.maximum(value, 0, out=value))


def onnx_runtime(path: Path, x: Tensor, threads: int) -> TimedFunction:
    """An exported file in ONNX Runtime, with this many threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    given = {"inputs": x.numpy()}

    def run(n: int) -> None:
        for _ in range(n):
            session.run(None, given)

    return run


def _linear(state: TrainState) -> list[tuple[Tensor, Tensor]]:
    names = [name.removesuffix(".weight") for name in state.masks]
    return [(state.params[f"{name}.weight"], state.params[f"{name}.bias"]) for name in names]


def _products(layers: Sequence[tuple[Any, Any]], x: Any, relu: Any) -> TimedFunction:
    def run(n: int) -> None:
        for _ in range(n):
            value = x
            for number, (weight, bias) in enumerate(layers):
                value = weight @ value + bias
                if number < len(layers) - 1:
                    value = relu(value)

    return run
