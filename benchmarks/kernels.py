"""Triton kernels compared with compiled PyTorch and with the card's rates: calls per second.

    python -m benchmarks.kernels --device cuda --precision bf16 --json FILE

or, installed, `lthfunc benchmark kernels`. All are CUDA graphs, so that no launch is measured. Its results decide
whether an engine should use a kernel. On a CPU Triton's interpreter runs a tiny mode (TRITON_INTERPRET=1), which
measures nothing.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.deployment.timing import TimedFunction, in_turn, repeated
from lthfunc.errors import invalid
from lthfunc.experiments.devices import choose_device
from lthfunc.sparse.gpu import triton_calls
from lthfunc.sparse.gpu.bits import pack_bits
from lthfunc.sparse.gpu.block_linear import block_linear, block_pattern, pack_blocks
from lthfunc.sparse.gpu.masked_adam import masked_adam
from lthfunc.sparse.gpu.masked_linear import masked_linear
from lthfunc.sparse.gpu.resident import pack_resident, resident_steps
from lthfunc.training.engines.toolchain import why_not
from lthfunc.training.loop import fit_together
from lthfunc.training.optimizers import AdamNumbers
from lthfunc.training.precision import Precision, check_precision, matmul_precision
from lthfunc.training.trainer import make_trainer
from lthfunc.trees.types import Dataset, Split

from . import peers
from .floors import BYTES, PEAK, peak_rate, reading_rate
from .graphed import graphed, runnable
from .records import FLOPS, MOVED, Options, Record, header, record, saying, script, write

#: Names in records: our kernel, the same in compiled PyTorch, and our engine, which the last kernel could replace.
KERNEL, COMPILED, ENGINE, TOGETHER = "lthfunc, kernel", "compiled", "lthfunc, engine", "torch.func compiled"
_ADAM = lf.adam(1.2e-3)
#: Steps per launch of the kernel that takes several.
_STEPS = 50


class Sizes(NamedTuple):
    """What is measured. networks: side by side; layer: (outputs, inputs) of a masked one, batch its examples; blocks:
    (side of a square layer, side of a block, examples); shape, model: a network and its inputs, trained so many steps.
    """

    networks: tuple[int, ...]
    layer: tuple[int, int]
    batch: int
    blocks: tuple[tuple[int, int, int], ...]
    shape: tuple[int, ...]
    model: Callable[[tuple[int, ...]], lf.Model]
    steps: int


def _tiny(shape: tuple[int, ...]) -> lf.Model:
    layers = nn.Flatten(), nn.Linear(math.prod(shape), 5), nn.ReLU(), nn.Linear(5, 10)
    return lf.from_module(nn.Sequential(*layers), name="tiny")


_MNIST = (1, 28, 28)
_ON_GPU = Sizes(
    (1, 64, 256), (300, 784), 60, ((4096, 64, 64), (4096, 128, 4096)), _MNIST, lf.models.lenet300, _STEPS
)  # fmt: skip
_TINY = Sizes((2,), (20, 24), 3, ((64, 32, 3),), (1, 2, 2), _tiny, 1)


class Job(NamedTuple):
    """One kernel on one size. flops, moved: the least FLOPs and bytes of a call."""

    name: str
    batch: int
    density: float
    variants: dict[str, TimedFunction]
    flops: int
    moved: int


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write. Raises UserError for what cannot be measured."""
    options = Options("kernels", __doc__)
    options.add("--device", default="auto", help="auto, cuda or cuda:N (auto)")
    options.add("--precision", default="fp32", help="fp32, tf32 or bf16 (fp32)")
    options.timings(0.2, 5)
    options.json()
    run(**options.parsed(arguments))


def run(
    *, device: str, precision: Precision, seconds: float = 0.2, repeats: int = 5, json: str | None = None
) -> list[Record]:
    """Measure, print, and on request write JSON. Raises UserError on a CPU, except in Triton's interpreter."""
    device = choose_device(device)
    check_precision(precision, device)
    if device == "cpu" and not triton_calls.interpreted():
        raise invalid("--device", device, "cuda or cuda:N; with TRITON_INTERPRET=1 a CPU runs a tiny mode")
    records: list[Record] = []
    head = header("kernels", f"lthfunc benchmark kernels --precision {precision}", device)
    with matmul_precision(precision):
        peak = peak_rate(device, precision)
        for job in _jobs(_TINY if device == "cpu" else _ON_GPU, device, precision):
            # No kernel has run on a card yet: one that fails is named, and the others are measured.
            variants = runnable(job.variants, lambda name: False)
            found = in_turn(variants, seconds=seconds, repeats=repeats, device=device, say=saying(job.name))
            found[PEAK] = [peak / job.flops]
            if device != "cpu":
                found[BYTES] = [reading_rate(job.moved, device) / job.moved]
            for name, rates in found.items():
                records.append(
                    record(
                        rates, network=job.name, variant=name, device=device, threads=torch.get_num_threads(),
                        batch=job.batch, density=job.density, precision=precision, unit="calls/s",
                        **{FLOPS: job.flops, MOVED: job.moved},
                    )
                )  # fmt: skip
                print(f"{job.name:>44}  {name:>24}  {records[-1]['median']:12,.1f} calls/s", flush=True)
            if json:  # what is measured is kept, whatever comes
                write(json, head, records)
    return records


def _jobs(sizes: Sizes, device: str, precision: Precision) -> Iterator[Job]:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    exact: triton_calls.Precision = "tf32" if precision == "tf32" else "ieee"
    for networks in sizes.networks:
        yield _adam(sizes, networks, device, dtype, exact)
        yield _linear(sizes, networks, device, dtype, exact)
    for side, size, examples in sizes.blocks:
        for density in (0.5, 0.1):
            yield _blocks(side, size, examples, density, device, dtype, exact)
    if precision == "fp32":
        for networks in sizes.networks:
            yield _resident(sizes, networks, device)


def _program(call: Callable[[], Any], device: str) -> TimedFunction:
    """The call as a graph, which is captured when it first runs: no part of what is timed."""
    calls: list[TimedFunction] = []

    def run(n: int) -> None:
        if not calls:
            calls.append(repeated(graphed(call, device)))
        calls[0](n)

    return run


def _compiled(function: Callable[..., Any], device: str, *given: Tensor) -> TimedFunction:
    """PyTorch's, compiled by Inductor on a GPU."""
    program = torch.compile(function, backend="eager" if device == "cpu" else "inductor")
    return _program(lambda: program(*given), device)


def _adam(sizes: Sizes, networks: int, device: str, dtype: torch.dtype, exact: triton_calls.Precision) -> Job:
    density, (outputs, inputs) = 0.2, sizes.layer
    shape = networks, outputs, inputs
    mask = torch.rand(shape, device=device) < density
    x = torch.randn(networks, sizes.batch, inputs, device=device, dtype=dtype)
    grad = torch.randn(networks, sizes.batch, outputs, device=device, dtype=dtype)
    weight, mean = (torch.randn(shape, device=device) * mask for _ in range(2))
    variance, bits, held = mean.square(), pack_bits(mask), mask.float()
    rate, corrections = torch.tensor(1.2e-3, device=device), torch.tensor([10.0, 31.6], device=device)
    numbers = _ADAM.numbers
    assert isinstance(numbers, AdamNumbers)
    (beta1, beta2), eps = numbers.betas, numbers.eps

    def plain(
        x: Tensor, grad: Tensor, mask: Tensor, weight: Tensor, mean: Tensor, variance: Tensor, rate: Tensor,
        corrections: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        g = torch.bmm(grad.mT, x).float() * mask
        mean = mean + (g - mean) * (1 - beta1)
        variance = variance * beta2 + g * g * (1 - beta2)
        return weight - rate * corrections[0] * mean / (variance.sqrt() * corrections[1] + eps), mean, variance

    def kernel() -> tuple[Tensor, ...]:
        return masked_adam(x, grad, bits, weight, mean, variance, rate, corrections, numbers, precision=exact)

    given = (x, grad, held, weight, mean, variance, rate, corrections)
    return Job(
        f"masked_adam {outputs}×{inputs}, K = {networks}",
        sizes.batch,
        density,
        {KERNEL: _program(kernel, device), COMPILED: _compiled(plain, device, *given)},
        2 * networks * sizes.batch * outputs * inputs,
        6 * weight.nbytes + bits.nbytes + x.nbytes + grad.nbytes,
    )


def _linear(sizes: Sizes, networks: int, device: str, dtype: torch.dtype, exact: triton_calls.Precision) -> Job:
    density, (outputs, inputs) = 0.2, sizes.layer
    mask = torch.rand(networks, outputs, inputs, device=device) < density
    x = torch.randn(networks, sizes.batch, inputs, device=device, dtype=dtype).requires_grad_()
    grad = torch.randn(networks, sizes.batch, outputs, device=device, dtype=dtype)
    weight = (torch.randn(networks, outputs, inputs, device=device) * mask).to(dtype).requires_grad_()
    bias = torch.randn(networks, outputs, device=device, dtype=dtype).requires_grad_()
    bits, held = pack_bits(mask), mask.to(dtype)

    def plain(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        masked = weight * mask
        y = torch.baddbmm(bias[:, None], x, masked.mT).relu()
        behind = grad * (y > 0)
        return y, torch.bmm(behind, masked), torch.bmm(behind.mT, x) * mask, behind.sum(1)

    def kernel() -> tuple[Tensor, ...]:
        y = masked_linear(x, weight, bits, bias, relu=True, precision=exact)
        return y, *torch.autograd.grad(y, (x, weight, bias), grad)

    given = (x.detach(), weight.detach(), held, bias.detach(), grad)
    return Job(
        f"masked_linear {outputs}×{inputs}, K = {networks}",
        sizes.batch,
        density,
        {KERNEL: _program(kernel, device), COMPILED: _compiled(plain, device, *given)},
        3 * 2 * networks * sizes.batch * outputs * inputs,
        2 * (weight.nbytes + x.nbytes + grad.nbytes) + bits.nbytes,
    )


def _blocks(
    side: int, size: int, examples: int, density: float, device: str, dtype: torch.dtype, exact: triton_calls.Precision
) -> Job:
    left = torch.rand(side // size, side // size, device=device) < density
    mask = left.repeat_interleave(size, 0).repeat_interleave(size, 1)
    pattern = block_pattern(mask, size)
    weight = (torch.randn(side, side, device=device) * mask).to(dtype)
    values = pack_blocks(weight, pattern).requires_grad_()
    x = torch.randn(examples, side, device=device, dtype=dtype).requires_grad_()
    grad = torch.randn(examples, side, device=device, dtype=dtype)

    def plain(x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        return F.linear(x, weight), grad @ weight, grad.mT @ x  # dense: what a mask would cost comes on top

    def kernel() -> tuple[Tensor, ...]:
        y = block_linear(x, values, pattern, precision=exact)
        return y, *torch.autograd.grad(y, (x, values), grad)

    return Job(
        f"block_linear {side}×{side} by {size}, {density:.0%}, n = {examples}",
        examples,
        round(float(mask.float().mean()), 4),
        {KERNEL: _program(kernel, device), COMPILED: _compiled(plain, device, x.detach(), weight, grad)},
        max(1, 3 * 2 * examples * values.numel()),
        2 * (values.nbytes + x.nbytes + grad.nbytes),
    )


def _resident(sizes: Sizes, networks: int, device: str) -> Job:
    """Several steps of whole networks a call; beside it our engine and PyTorch's tools, in graphs of their own."""
    density, steps = 0.036, sizes.steps
    model = sizes.model(sizes.shape)
    prune = lf.prune(density=density)
    states = [prune(lf.init(model, seed, device)) for seed in range(networks)]
    x = torch.randn(steps, sizes.batch, *sizes.shape, device=device)
    y = torch.randint(10, (steps, sizes.batch), device=device)
    resident = pack_resident(states, _ADAM)
    split = Split(x.flatten(0, 1), y.flatten())
    data = Dataset("drawn", split, Split(split.x[:10], split.y[:10]), Split(split.x[:10], split.y[:10]), 10)
    engine = "compile" if device != "cpu" and why_not(device) is None else "eager"
    trainer = make_trainer(model, data, optimizer=_ADAM, batch_size=sizes.batch, engine=engine)

    def together(n: int) -> None:
        fit_together(trainer, states, seeds=range(networks), until=n * steps, eval_every=n * steps)

    def kernel() -> None:
        resident_steps(resident, x, y)

    variants: dict[str, TimedFunction] = {KERNEL: _program(kernel, device), ENGINE: together}
    if device != "cpu":
        ensemble = peers.ensemble(model, states, list(zip(x, y, strict=True)), "fp32")
        variants[TOGETHER] = lambda n: ensemble(n * steps)
    survivors = lf.count(states[0].masks).kept
    return Job(
        f"resident {model.name}, {steps} steps, K = {networks}",
        sizes.batch,
        density,
        variants,
        3 * 2 * networks * steps * sizes.batch * survivors,
        6 * 4 * networks * steps * survivors,
    )


if __name__ == "__main__":
    sys.exit(script(main))
