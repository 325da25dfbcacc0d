"""What `lf.sparse_module` gains in a plain PyTorch loop.

    lthfunc benchmark sparse-module --network lenet5 --optimizer adam-fused

The same loop on the dense module, compiled by torch.compile, and on the sparse one, in turns; beside them this
library's own loop, which `auto` would take and which is faster, and two lower bounds: the machine's two halves of a
step without autograd and optimiser, and the surviving FLOPs at the peak rate.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.deployment.timing import TimedFunction, in_turn
from lthfunc.errors import invalid
from lthfunc.training.batches import batches
from lthfunc.training.cpu_threads import using_threads
from lthfunc.training.trainer import make_trainer
from lthfunc.trees.ops import scaled

from .attach import OPTIMIZERS
from .floors import PEAK, peak_rate, products
from .loops import user_loop
from .networks import Case, cases, images
from .records import Options, Record, chosen, header, record, saying, script, speedup, write

#: Of records.
DENSE, SPARSE = "plain loop, torch.compile", "plain loop, lf.sparse_module"
OWN, MACHINE = "lthfunc, auto", "the machine alone"
#: Densities to measure at, unless another is asked for.
_DENSITIES = {"lenet5": 0.2, "resnet20": 0.1}
_DENSITY = 0.1


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write. Raises UserError for what cannot be measured."""
    options = Options("sparse-module", __doc__)
    options.networks("lenet5, resnet20 or another of `lthfunc benchmark training` (lenet5, resnet20)")
    options.add("--optimizer", dest="optimizers", action="append", choices=OPTIMIZERS, help="repeatable (adam)")
    options.add("--density", type=float, help="of the masks (0.2 for lenet5, else 0.1)")
    options.turns()
    run(**options.parsed(arguments))


def run(
    *, networks: Sequence[str], optimizers: Sequence[str] | None, density: float | None, device: str, threads: int,
    seconds: float, repeats: int, json: str | None,
) -> list[Record]:  # fmt: skip
    """Measure, print, and write JSON where asked to."""
    names = chosen(networks, tuple(_DENSITIES), tuple(cases()), threads)
    if device != "cpu":
        raise invalid("--device", device, "cpu, for which the sparse engine has kernels")
    lf.keep_freed_memory()
    records = list[Record]()
    with using_threads(threads):
        for case in (cases()[name] for name in names):
            kept = _DENSITIES.get(case.name, _DENSITY) if density is None else density
            for optimizer in optimizers or ("adam",):
                variants, floor = _variants(case, optimizer, kept)
                title = f"{case.name} at {kept:g}, {optimizer}"
                rates = in_turn(variants, seconds=seconds, repeats=repeats, device=device, say=saying(title))
                about = {"network": case.name, "optimizer": optimizer, "density": kept, "batch": case.batch,
                         "threads": threads, "unit": "steps/s"}  # fmt: skip
                records += [record(found, engine=name, **about) for name, found in rates.items()]
                records.append(record([floor], engine=PEAK, **about))
                _tell(rates, title)
    if json is not None:
        write(json, header("sparse-module", "lthfunc benchmark sparse-module", device, threads), records)
    return records


def _tell(rates: dict[str, list[float]], what: str) -> None:
    print(what)
    for name, found in rates.items():
        print(f"{name:>30}  {statistics.median(found):9.1f} steps/s  {speedup(found, rates[DENSE]):6.2f} ×")


def _variants(case: Case, optimizer: str, density: float) -> tuple[dict[str, TimedFunction], float]:
    """(what is measured, the rate at which the surviving FLOPs alone would go)."""
    state = lf.prune(density=density, score=lf.random_scores(0))(lf.init(case.model))
    data = images(case, "cpu")
    ((x, y),) = batches(data.train, case.batch, 0, 0, 1)
    x = x if data.scale is None else scaled(x, data.scale)  # tokens stay numbers
    module = lf.to_module(lf.ticket(state), case.model).train()
    sparse = lf.sparse_module(module, state.masks)
    made = lf.adam(1e-4) if optimizer.startswith("adam") else lf.sgd(1e-3, momentum=0.9)
    trainer = make_trainer(
        case.model, data, optimizer=made, batch_size=case.batch, engine=lf.sparse_or("compile")
    )  # fmt: skip
    _, flops = products(case.model, x)
    return {
        DENSE: _loop(torch.compile(module), OPTIMIZERS[optimizer](module), x, y),
        SPARSE: _loop(sparse, OPTIMIZERS[optimizer](sparse), x, y),
        OWN: user_loop(trainer, state),
        MACHINE: _machine(lf.sparse_module(module, state.masks), x),
    }, peak_rate("cpu") / flops / density


def _loop(net: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> TimedFunction:
    """Somebody's loop."""

    def run(n: int) -> None:
        for _ in range(n):
            optimizer.zero_grad()
            F.cross_entropy(net(x).flatten(0, -2), y.flatten()).backward()  # of examples, or of tokens
            optimizer.step()

    return run


def _machine(sparse: nn.Module, x: Tensor) -> TimedFunction:
    """Both halves of a step, as autograd would call them."""
    outputs = sparse(x)
    gradient = torch.randn_like(outputs)
    halves = outputs.grad_fn.halves
    lease = outputs.grad_fn.lease
    leaves = list(sparse.parameters())
    buffers = dict(sparse.named_buffers())

    def run(n: int) -> None:
        with torch.no_grad():
            for _ in range(n):
                halves.forward(lease, 0, [x], leaves, buffers)
                halves.backward(lease, 0, len(x), [gradient])

    return run


if __name__ == "__main__":
    sys.exit(script(main))
