"""Masked training steps per second: lthfunc's ways against torch.nn.utils.prune, in one run.

    python -m benchmarks.train_step --arch lenet300 --dataset mnist --data-dir DATA --json FILE

The floor is the time that the step's matrix products and convolutions alone take on this machine.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune as torch_prune

import lthfunc as lf
from benchmarks.machine import rates, ratio, report, synchronize
from lthfunc.training.batches import batches
from lthfunc.training.compiling import unguarded
from lthfunc.training.steps import floating_masks
from lthfunc.trees import ops
from lthfunc.trees.types import Batch, TrainState

BASE = "torch.nn.utils.prune"
OURS = "lthfunc, compiled"
#: Several steps in one compiled call: their compile time grows with their number.
UNROLLED = 4

Step = Callable[[TrainState, Any], Any]


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arch", default="lenet300")
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data-dir")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=60)
    parser.add_argument("--density", type=float, default=0.2)
    parser.add_argument("--steps", type=int, default=300, help="steps per timing")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--unrolled", action="store_true", help=f"also {UNROLLED} steps in one call (slow to compile)")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    report("train_step", measure(options), options.device, options.json)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Rates, ratios, compile time and floor, as JSON values."""
    device = options.device
    data = ops.data_to_device(lf.data.load(options.dataset, options.data_dir), device)
    model = lf.models.build(options.arch, data.shape, data.classes)
    optimizer = lf.adam(1.2e-3)
    step = lf.make_train_step(model, lf.cross_entropy, optimizer)
    sparse = lf.with_optimizer(lf.prune(density=options.density)(lf.init(model, 0, device)), optimizer)
    dense = lf.with_optimizer(lf.init(model, 0, device), optimizer)
    count = min(options.steps, len(data.train.x) // options.batch_size)
    ready = list(batches(data.train, options.batch_size, 0, 0, count))

    start = time.perf_counter()
    compiled = lf.compiled(step)
    with torch.no_grad():
        compiled(floating_masks(sparse), ready[0])
    synchronize(device)
    compile_seconds = time.perf_counter() - start

    variants: dict[str, Callable[[int], Any]] = {
        BASE: _torch_prune(model, sparse, ready),
        "lthfunc, eager": _steps(step, floating_masks(sparse), ready),
        "compiled, bool masks": _steps(compiled, sparse, ready),
        "compiled, with guards": _steps(compiled, floating_masks(sparse), ready),
        "compiled, state donated": _steps(_donating(step), floating_masks(sparse), ready),
        OURS: _steps(compiled, floating_masks(sparse), ready, unguard=True),
        "lthfunc, compiled, dense": _steps(compiled, floating_masks(dense), ready, unguard=True),
        "floor: products alone": _products(model, sparse, ready),
    }
    if options.unrolled:
        variants[f"compiled, {UNROLLED} steps a call"] = _unrolled(step, floating_masks(sparse), ready)
    found, warmup = rates(variants, options.steps, options.repeats, device)

    eager, fast = (statistics.median(1 / rate for rate in found[name]) for name in ("lthfunc, eager", OURS))
    return {
        "settings": {name: value for name, value in vars(options).items() if name not in ("json", "data_dir")},
        "steps_per_second": {name: round(statistics.median(values), 1) for name, values in found.items()},
        f"ratio_to_{BASE}": {name: round(ratio(found, name, BASE), 3) for name in found},
        "compile_seconds": round(compile_seconds, 1),
        "warmup_seconds": {name: round(seconds, 1) for name, seconds in warmup.items()},
        "steps_that_pay_for_compiling": round(compile_seconds / (eager - fast)) if eager > fast else None,
        "weights": lf.count(sparse.masks)._asdict(),
        "floor_bytes_per_step": _bytes(sparse),
    }


def _steps(step: Step, start: TrainState, ready: list[Batch], *, unguard: bool = False) -> Callable[[int], Any]:
    """n steps; each call goes on from the last one's state."""
    state = ops.clone(start)  # the donating variant writes into it

    def run(n: int) -> None:
        nonlocal state
        # The warm-up, of two calls, compiles with guards.
        with torch.no_grad(), unguarded() if unguard and n > 2 else nullcontext():
            for i in range(n):
                state, _ = step(state, ready[i % len(ready)])

    return run


def _unrolled(step: Step, start: TrainState, ready: list[Batch]) -> Callable[[int], Any]:
    """As many steps, `UNROLLED` in each compiled call."""

    def several(state: TrainState, many: Any) -> Any:
        metrics = None
        for batch in many:
            state, metrics = step(state, batch)
        return state, metrics

    groups: list[Any] = [ready[i : i + UNROLLED] for i in range(0, len(ready) - UNROLLED + 1, UNROLLED)]
    run = _steps(lf.compiled(several), start, groups)
    return lambda n: run(max(2, n // UNROLLED))


def _donating(step: Step) -> Step:
    """The step writing its new state into the memory of the old one, as with donated arguments in JAX."""

    def overwrite(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        return old if old is new else old.copy_(new)

    def donating(state: TrainState, batch: Batch) -> Any:
        new, metrics = step(state, batch)
        ops.tree_map(overwrite, state, new)
        return metrics

    program = torch.compile(donating, fullgraph=True, dynamic=False)
    return lambda state, batch: (state, program(state, batch))


def _torch_prune(model: lf.Model, state: TrainState, ready: list[Batch]) -> Callable[[int], Any]:
    """PyTorch's own pruning: reparametrised weights, autograd, fused Adam."""
    module = copy.deepcopy(model.training).to(state.step.device).requires_grad_(True)
    module.load_state_dict({**state.params, **state.buffers})
    for name, mask in state.masks.items():
        owner, _, leaf = name.rpartition(".")
        torch_prune.custom_from_mask(  # type: ignore[no-untyped-call]
            module.get_submodule(owner), leaf, mask
        )
    optimizer = torch.optim.Adam(module.parameters(), 1.2e-3, fused=True)

    def run(n: int) -> None:
        for i in range(n):
            x, y = ready[i % len(ready)]
            optimizer.zero_grad()
            F.cross_entropy(module(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return run


def _products(model: lf.Model, state: TrainState, ready: list[Batch]) -> Callable[[int], Any]:
    """Every layer's product and its two gradients on inputs of the real sizes, and nothing else."""
    module = copy.deepcopy(model.evaluating).to(state.step.device)
    jobs: list[Callable[[], Any]] = []

    def note(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        x, out, first = inputs[0], torch.randn_like(output), not jobs
        if isinstance(layer, nn.Linear):
            jobs.append(lambda: (x @ layer.weight.T, out.T @ x, None if first else out @ layer.weight))
        elif isinstance(layer, nn.Conv2d):
            settings = (layer.stride, layer.padding, layer.dilation, False, (0, 0), 1, (not first, True, False))
            jobs.append(
                lambda: (
                    F.conv2d(x, layer.weight, None, layer.stride, layer.padding),
                    torch.ops.aten.convolution_backward(out, x, layer.weight, None, *settings),
                )
            )

    hooks = [layer.register_forward_hook(note) for layer in module.modules()]
    with torch.no_grad():
        module(ready[0][0])
    for hook in hooks:
        hook.remove()

    def run(n: int) -> None:
        with torch.no_grad():
            for _ in range(n):
                for job in jobs:
                    job()

    return run


def _bytes(state: TrainState) -> int:
    """Bytes that Adam must move at the least: read params, two moments and masks, write params and moments."""
    params = sum(leaf.numel() * leaf.element_size() for leaf in state.params.values())
    return 6 * params + sum(4 * mask.numel() for mask in state.masks.values())


if __name__ == "__main__":
    main()
