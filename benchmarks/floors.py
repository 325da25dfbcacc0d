"""Lower bounds of a training step's time: its products by the best library call, and its FLOPs at peak rate."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.deployment.timing import TimedFunction, seconds_of
from lthfunc.training.engines.gemm import has_one_dnn, onednn_gemm
from lthfunc.training.engines.im2col import im2col
from lthfunc.training.precision import Precision, matmul_precision

from .graphed import graphed

#: The lower bounds, by their names in records.
FLOOR, PEAK, BYTES = "products alone", "FLOPs at peak rate", "bytes at reading rate"


#: Calls in a graph that is timed; fewer of large products, which take milliseconds each.
_CALLS, _LARGE_CALLS = 50, 3


class Job(NamedTuple):
    """A layer's product and its gradients. flops: of all of them."""

    run: Callable[[], Any]
    flops: int


def products(model: lf.Model, x: Tensor, networks: int = 1, precision: Precision = "fp32") -> tuple[TimedFunction, int]:
    """Every layer's product and its gradients on inputs of the real sizes, and nothing else; and their FLOPs.

    Each layer uses the memory layout and the library that are faster for it; the first layer needs no gradient of its
    input, and that of its weights may be a product over columns, as in the compiled engine. On a GPU they are one
    graph. networks: how many at once, of linear layers only. precision: of the factors, as in a training.
    """
    jobs: list[Job] = []
    with matmul_precision(precision):
        for choices in _layers(model, x, networks, _types(precision)):
            best = min(choices, key=lambda job: _seconds(job.run, str(x.device)))
            jobs.append(best)

    def once() -> None:
        for job in jobs:
            job.run()

    with torch.no_grad(), matmul_precision(precision):
        call = graphed(once, x.device)

    def run(n: int) -> None:
        with torch.no_grad(), matmul_precision(precision):
            for _ in range(n):
                call()

    return run, sum(job.flops for job in jobs)


def _types(precision: Precision) -> torch.dtype:
    return torch.bfloat16 if precision == "bf16" else torch.float32


def peak_rate(device: str, precision: Precision = "fp32") -> float:
    """FLOP/s of the best of some large products by either library, with the current number of threads."""
    best = 0.0
    with matmul_precision(precision):
        for size in (512, 768, 1024, 2048) if device == "cpu" else (4096, 8192):
            a, b = torch.randn(2, size, size, device=device, dtype=_types(precision))
            for product in _libraries(a):
                best = max(best, 2 * size**3 / _seconds(functools.partial(product, a, b), device, calls=_LARGE_CALLS))
    return best


def peaks(flops: int, moved: int, device: str, precision: Precision) -> dict[str, list[float]]:
    """Steps per second for these FLOPs and bytes at the device's rates; for bytes only on a GPU."""
    found = {PEAK: [peak_rate(device, precision) / flops]}
    if device != "cpu":
        found[BYTES] = [reading_rate(moved, device) / moved]
    return found


def step_bytes(params: lf.Params, masks: lf.Masks) -> int:
    """Bytes that every masked step of Adam needs: weights, moments and masks read, weights and moments written."""
    weights = sum(int(leaf.nbytes) for leaf in params.values())
    return 6 * weights + sum(int(mask.nbytes) for mask in masks.values())


def reading_rate(size: int, device: str) -> float:
    """Bytes/s of reading this much memory repeatedly, from the cache that holds it."""
    data = torch.ones(max(size, 4096) // 4, device=device)
    return data.nbytes / _seconds(data.sum, device, repeats=31)


def _seconds(run: Callable[[], Any], device: str, repeats: int = 9, calls: int = _CALLS) -> float:
    """The least of some timings of a call. On a GPU, of a graph of many calls, since a call ends before it is seen."""
    calls = calls if device.startswith("cuda") else 1

    def several() -> None:
        for _ in range(calls):
            run()

    with torch.no_grad():
        call = graphed(several, device) if calls > 1 else run
        call()
        found = [seconds_of(call, device) for _ in range(repeats)]
    return min(found) / calls


def _layers(model: lf.Model, x: Tensor, networks: int, dtype: torch.dtype) -> list[Sequence[Job]]:
    """dtype: of the products' factors."""
    module = copy.deepcopy(model.evaluating).to(x.device, dtype)
    found: list[Sequence[Job]] = []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        first = not found
        if isinstance(layer, nn.Linear):
            found.extend(_linear(layer, inputs[0], output, networks, first=first))
        elif isinstance(layer, nn.Conv2d):
            if networks > 1:
                raise ValueError("convolutions of several networks have no floor here")
            formats = (torch.contiguous_format, torch.channels_last)
            choices = [_convolution(layer, inputs[0], output, fmt, first=first) for fmt in formats]
            found.append([*choices, *_by_columns(layer, inputs[0], output)] if first else choices)

    hooks = [layer.register_forward_hook(note) for layer in module.modules()]
    with torch.no_grad():
        module(x.to(dtype) if x.is_floating_point() else x)
    for hook in hooks:
        hook.remove()
    return found


def _linear(layer: nn.Linear, x: Tensor, output: Tensor, networks: int, *, first: bool) -> list[Sequence[Job]]:
    """The output, the gradient of the weight and that of the input, each by the library that is faster."""
    out, weight = torch.randn_like(output).flatten(0, -2), layer.weight.detach()
    x = x.flatten(0, -2)
    flops = networks * 2 * x.numel() * weight.shape[0]
    if networks > 1:
        x, out, weight = (part.expand(networks, *part.shape).contiguous() for part in (x, out, weight))
        several = [(x, weight.mT), (out.mT, x), *([] if first else [(out, weight)])]
        return [[Job(functools.partial(torch.bmm, *pair), flops)] for pair in several]
    pairs = [(x, weight.T), (out.T, x), *([] if first else [(out, weight)])]
    return [[Job(functools.partial(product, *pair), flops) for product in _libraries(x)] for pair in pairs]


def _libraries(factor: Tensor) -> list[Callable[..., Tensor]]:
    """Products of two matrices: PyTorch's own and, on a CPU where PyTorch has it, oneDNN's."""
    also = factor.device.type == "cpu" and factor.dtype == torch.float32 and has_one_dnn()
    return [torch.mm, *([functools.partial(onednn_gemm, bias=None)] if also else [])]


def _convolution(layer: nn.Conv2d, x: Tensor, output: Tensor, fmt: torch.memory_format, *, first: bool) -> Job:
    out = torch.randn_like(output).contiguous(memory_format=fmt)
    x, weight = x.contiguous(memory_format=fmt), layer.weight.detach().contiguous(memory_format=fmt)
    settings: tuple[Any, ...] = (layer.stride, layer.padding, layer.dilation)
    backward = (*settings, False, (0, 0), layer.groups, (not first, True, False))
    flops = (2 if first else 3) * 2 * output.numel() * weight[0].numel()
    return Job(
        lambda: (
            F.conv2d(x, weight, None, *settings, layer.groups),  # type: ignore[call-overload]
            torch.ops.aten.convolution_backward(out, x, weight, None, *backward),
        ),
        flops,
    )


def _by_columns(layer: nn.Conv2d, x: Tensor, output: Tensor) -> list[Job]:
    """A first layer whose weights' gradient is one product over columns that are there already."""
    plain = layer.groups == 1 and layer.dilation == (1, 1) and not isinstance(layer.padding, str)
    if x.device.type != "cpu" or x.dtype != torch.float32 or not plain or not has_one_dnn():
        return []
    columns = im2col(x, layer.kernel_size, layer.stride, layer.padding)  # type: ignore[arg-type]
    out = torch.randn_like(output).permute(0, 2, 3, 1).reshape(-1, layer.out_channels)
    x, weight = (part.contiguous(memory_format=torch.channels_last) for part in (x, layer.weight.detach()))
    settings: tuple[Any, ...] = (layer.stride, layer.padding)
    return [
        Job(
            lambda: (F.conv2d(x, weight, None, *settings), onednn_gemm(columns, out, None)),
            4 * output.numel() * weight[0].numel(),
        )
    ]
