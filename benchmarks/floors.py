"""What a training step cannot be faster than: its products by the best library call, and its FLOPs at peak rate."""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.execution.timing import Run, synchronize
from lthfunc.training.engines.columns import columns_of
from lthfunc.training.engines.products import has_one_dnn, one_dnn

from .graphed import graphed

#: The floors, as records name them.
FLOOR, PEAK, BYTES = "products alone", "FLOPs at peak rate", "bytes at reading rate"


#: Calls in a graph that is timed.
_CALLS = 50


class Job(NamedTuple):
    """A layer's product and its gradients. flops: of all of them."""

    run: Callable[[], Any]
    flops: int


def products(model: lf.Model, x: Tensor, networks: int = 1) -> tuple[Run, int]:
    """(every layer's product and gradients on inputs of the real sizes and nothing else, their FLOPs).

    Each layer in the memory layout, and by the library, that it is faster in; the first layer needs no gradient of its
    input, and its weights' may be a product over columns, as the compiled engine's. On a GPU they are one graph.
    networks: so many side by side, of linear layers alone.
    """
    jobs: list[Job] = []
    for choices in _layers(model, x, networks):
        best = min(choices, key=lambda job: _seconds(job.run, str(x.device)))
        jobs.append(best)

    def once() -> None:
        for job in jobs:
            job.run()

    with torch.no_grad():
        call = graphed(once, x.device)

    def run(n: int) -> None:
        with torch.no_grad():
            for _ in range(n):
                call()

    return run, sum(job.flops for job in jobs)


def peak_rate(device: str) -> float:
    """FLOP/s of the best of some large float32 products by either library, on the threads that are set."""
    best = 0.0
    for size in (512, 768, 1024, 2048) if device == "cpu" else (4096, 8192):
        a, b = torch.randn(2, size, size, device=device)
        for product in _libraries(device):
            best = max(best, 2 * size**3 / _seconds(functools.partial(product, a, b), device))
    return best


def step_bytes(params: lf.Params, masks: lf.Masks) -> int:
    """Bytes that no masked step of Adam does without: weights, moments and masks read, weights and moments written."""
    weights = sum(int(leaf.nbytes) for leaf in params.values())
    return 6 * weights + sum(int(mask.nbytes) for mask in masks.values())


def reading_rate(size: int, device: str) -> float:
    """Bytes/s of reading as much memory as that again and again, so from the cache that holds it."""
    data = torch.ones(max(size, 4096) // 4, device=device)
    return data.nbytes / _seconds(data.sum, device, repeats=31)


def _seconds(run: Callable[[], Any], device: str, repeats: int = 9) -> float:
    """The least of some timings of a call. On a GPU, of a graph of many calls, since a call ends before it is seen."""
    calls = _CALLS if device.startswith("cuda") else 1

    def several() -> None:
        for _ in range(calls):
            run()

    with torch.no_grad():
        call = graphed(several, device) if calls > 1 else run
        call()
        synchronize(device)
        found = []
        for _ in range(repeats):
            start = time.perf_counter()
            call()
            synchronize(device)
            found.append(time.perf_counter() - start)
    return min(found) / calls


def _layers(model: lf.Model, x: Tensor, networks: int) -> list[Sequence[Job]]:
    module = copy.deepcopy(model.evaluating).to(x.device)
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
        module(x)
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
    return [[Job(functools.partial(product, *pair), flops) for product in _libraries(x.device.type)] for pair in pairs]


def _libraries(device: str) -> list[Callable[..., Tensor]]:
    """Products of two matrices: PyTorch's own and, on a CPU where PyTorch has it, oneDNN's."""
    return [torch.mm, *([functools.partial(one_dnn, bias=None)] if device == "cpu" and has_one_dnn() else [])]


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
    if x.device.type != "cpu" or not plain or not has_one_dnn():
        return []
    columns = columns_of(x, layer.kernel_size, layer.stride, layer.padding)  # type: ignore[arg-type]
    out = torch.randn_like(output).permute(0, 2, 3, 1).reshape(-1, layer.out_channels)
    x, weight = (part.contiguous(memory_format=torch.channels_last) for part in (x, layer.weight.detach()))
    settings: tuple[Any, ...] = (layer.stride, layer.padding)
    return [
        Job(
            lambda: (F.conv2d(x, weight, None, *settings), one_dnn(columns, out, None)),
            4 * output.numel() * weight[0].numel(),
        )
    ]
