"""GPU kernels assembled without a GPU, as they would be launched: ``python tests/gpu_kernels.py`` does all of it,
``python tests/gpu_kernels.py 'masked_adam bfloat16'`` what has this in its name.

A call with tensors on the CPU is stopped where Triton would start the kernel; what it was given decides, as in Triton,
what is compiled. The table says what the assembler made of it.
"""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

import lthfunc as lf
from lthfunc.sparse.gpu import triton_calls
from lthfunc.sparse.gpu.bits import words
from lthfunc.sparse.gpu.block_linear import SIZES, block_linear, block_pattern
from lthfunc.sparse.gpu.masked_adam import masked_adam
from lthfunc.sparse.gpu.masked_linear import masked_linear
from lthfunc.sparse.gpu.resident import pack_resident, resident_steps

#: By compute capability: bytes of shared memory that a program can have.
CAPABILITIES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
#: Instructions of tensor cores: of all of them, and of those of capability 9.0 and 10.0, for tiles of 64 rows and more.
TENSOR_CORES = ("mma.sync", "wgmma.mma_async", "tcgen05.mma")
_TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int32: "i32", torch.int64: "i64"}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Launch(NamedTuple):
    """A kernel, and what it was called with."""

    kernel: Any
    given: dict[str, Any]
    options: dict[str, int]


class Assembled(NamedTuple):
    """What came of a launch. spilled: bytes of local memory and stack. barriers: asked for. ptx: its text."""

    name: str
    capability: int
    shared: int
    registers: int
    spilled: int
    barriers: int
    ptx: str

    @property
    def tensor_cores(self) -> str:
        """The instruction of tensor cores that products are made of, or nothing."""
        return next((name for name in TENSOR_CORES if name in self.ptx), "")


#: Options of a launch, which the kernel itself is not given.
_OPTIONS: tuple[str, ...] = ("num_warps", "num_stages", "maxnreg")


def launches(call: Callable[[], Any]) -> list[Launch]:
    """The kernels that a call would launch on a GPU, in order."""
    from triton.runtime.jit import JITFunction

    found = []

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **named: Any) -> None:
        options: dict[str, int] = {
            name: named.pop(name) for name in ("num_warps", "num_stages", "maxnreg") if name in named
        }
        found.append(Launch(kernel, dict(inspect.signature(kernel.fn).bind(*args, **named).arguments), options))

    with mock.patch.object(JITFunction, "run", run), mock.patch.object(triton_calls, "check_device"):
        call()
    return found


def assemble(launch: Launch, capability: int) -> Assembled:
    """Compile and assemble a launch. Raises what Triton and the assembler raise."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {parameter.name for parameter in launch.kernel.params if parameter.is_constexpr}
    signature, constexprs, attributes = {}, {}, {}
    for place, (name, value) in enumerate(launch.given.items()):
        if name in constants or (type(value) is int and value == 1):
            signature[name], constexprs[place,] = "constexpr", value
            continue
        kind = _TYPES[value.dtype] if isinstance(value, Tensor) else "i32" if type(value) is int else "fp32"
        signature[name] = f"*{kind}" if isinstance(value, Tensor) else kind
        if isinstance(value, Tensor) or (type(value) is int and value % 16 == 0):
            attributes[place,] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constexprs, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch.options)
    registers, spilled = _usage(compiled.asm["cubin"])
    shared = int(compiled.metadata.shared)
    barriers = sum("barrier" in line for line in compiled.asm["ttir"].splitlines())
    return Assembled(launch.kernel.fn.__name__, capability, shared, registers, spilled, barriers, compiled.asm["ptx"])


def _usage(cubin: bytes) -> tuple[int, int]:
    """(registers of a thread, bytes of local memory and stack), as the assembler allotted them."""
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return found["REG"], found["STACK"] + found["LOCAL"]


#: K networks, examples, outputs and inputs: of LeNet-300-100's first layer, and of less than a tile.
_LARGE, _SMALL = (2, 60, 300, 784), (2, 7, 10, 33)


def calls() -> Iterator[tuple[str, Callable[[], Any]]]:
    """What is launched, by name: every kernel in every type, with and without what it may have."""
    for name, dtype in DTYPES.items():
        for precision in triton_calls.PRECISIONS if name == "float32" else ("ieee",):
            kind = f"{name} {precision}"
            yield f"masked_adam {kind}", _adam(_LARGE, dtype, precision, False, lf.adam(0.1))
            yield f"masked_adam relu decoupled {kind}", _adam(_LARGE, dtype, precision, True, lf.adamw(0.1))
            yield (
                f"masked_adam decay small {kind}",
                _adam(_SMALL, dtype, precision, False, lf.adam(0.1, weight_decay=0.1)),
            )
            yield f"masked_linear {kind}", _linear(_LARGE, dtype, dtype, precision, False)
            yield f"masked_linear relu {kind}", _linear(_LARGE, dtype, dtype, precision, True)
            yield f"masked_linear relu small {kind}", _linear(_SMALL, dtype, dtype, precision, True)
            for size in SIZES:
                yield f"block_linear {size} {kind}", _blocks(dtype, size, precision)
            if dtype != torch.float32:
                yield f"masked_linear relu float32 {kind}", _linear(_LARGE, dtype, torch.float32, precision, True)

    for name, optimizer in (
        ("adam", lf.adam(0.1)),
        ("adamw", lf.adamw(0.1)),
        ("sgd decay", lf.sgd(0.1, weight_decay=0.1)),
        ("momentum", lf.sgd(0.1, 0.9)),
        ("nesterov", lf.sgd(0.1, 0.9, nesterov=True)),
    ):
        yield f"resident {name}", _resident(optimizer)


def _adam(
    sizes: tuple[int, int, int, int], dtype: torch.dtype, precision: Any, relu: bool, optimizer: lf.Optimizer
) -> Callable[[], Any]:
    k, n, outputs, inputs = sizes
    x, grad = torch.empty(k, n, inputs, dtype=dtype), torch.empty(k, n, outputs, dtype=dtype)
    weight, bits = torch.empty(k, outputs, inputs), torch.empty(k, outputs, words(inputs), dtype=torch.int32)
    numbers = (torch.empty(()), torch.empty(2), optimizer.numbers)
    gate = grad if relu else None
    return lambda: masked_adam(x, grad, bits, weight, weight, weight, *numbers, gate=gate, precision=precision)  # type: ignore[arg-type]


def _linear(
    sizes: tuple[int, int, int, int], dtype: torch.dtype, kept: torch.dtype, precision: Any, relu: bool
) -> Callable[[], Any]:
    k, n, outputs, inputs = sizes
    x, weight = torch.empty(k, n, inputs, dtype=dtype), torch.empty(k, outputs, inputs, dtype=kept)
    bits, bias = torch.empty(k, outputs, words(inputs), dtype=torch.int32), torch.empty(k, outputs, dtype=kept)

    def call() -> None:
        leaves = [leaf.requires_grad_() for leaf in (x, weight, bias)]
        y = masked_linear(leaves[0], leaves[1], bits, leaves[2] if relu else None, relu=relu, precision=precision)
        torch.autograd.grad(y, leaves[: 3 if relu else 2], torch.empty_like(y))

    return call


def _blocks(dtype: torch.dtype, size: int, precision: Any) -> Callable[[], Any]:
    pattern = block_pattern(torch.ones(300, 784, dtype=torch.bool), size)
    x, values = torch.empty(60, 784, dtype=dtype), torch.empty(len(pattern.rows), size, size, dtype=dtype)

    def call() -> None:
        leaves = x.requires_grad_(), values.requires_grad_()
        y = block_linear(*leaves, pattern, torch.empty(300, dtype=dtype), precision=precision)
        torch.autograd.grad(y, leaves, torch.empty_like(y))

    return call


def _resident(optimizer: lf.Optimizer) -> Callable[[], Any]:
    def call() -> None:
        state = lf.prune(density=0.036)(lf.init(lf.models.lenet300()))
        resident = pack_resident([state, state], optimizer)
        resident_steps(resident, torch.empty(3, 60, 784), torch.zeros(3, 60, dtype=torch.int64))

    return call


def main(only: str = "") -> int:
    """Assemble what has a text in its name, and say what came of it; 1 where registers spill or memory is too large."""
    import triton

    failed = False
    with tempfile.TemporaryDirectory() as folder, triton.knobs.cache.scope():
        triton.knobs.cache.dir = folder
        for name, call in calls():
            for launch in launches(call) if only in name else ():
                for capability, most in CAPABILITIES.items():
                    found = assemble(launch, capability)
                    bad = found.spilled > 0 or found.shared > most
                    failed = failed or bad
                    print(
                        f"{name:45} {found.name:18} sm_{capability:<4} {found.shared / 1024:6.1f} KB shared "
                        f"{found.registers:4} registers {found.spilled:4} B spilled"
                        f"  {found.tensor_cores}{'  TOO MUCH' if bad else ''}",
                        flush=True,
                    )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
