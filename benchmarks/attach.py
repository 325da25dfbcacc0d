"""What `lf.attach` costs a step of a plain PyTorch loop.

lthfunc benchmark attach --network resnet20 --optimizer sgd

The same loop with and without it, in turns, on masks that keep a fifth of the weights. On a CPU, PyTorch's unfused Adam
takes square roots by a routine that is slow for zeros, whoever keeps its moments at zero.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence

import torch
from torch import nn

import lthfunc as lf
from lthfunc.deployment.timing import TimedFunction, in_turn
from lthfunc.experiments.devices import choose_device

from .networks import Case, cases
from .records import Options, Record, chosen, header, record, script, write

#: Of records.
PLAIN, ATTACHED = "plain loop", "lf.attach"
OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "adam": lambda net: torch.optim.Adam(net.parameters(), 1e-4),
    "adam-fused": lambda net: torch.optim.Adam(net.parameters(), 1e-4, fused=True),
    "sgd": lambda net: torch.optim.SGD(net.parameters(), 1e-3, momentum=0.9),
}


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write. Raises UserError for what cannot be measured."""
    options = Options("attach", __doc__)
    options.networks("lenet300, resnet20 or another of `lthfunc benchmark training` (lenet300, resnet20)")
    options.add("--optimizer", dest="optimizers", action="append", choices=OPTIMIZERS, help="repeatable (all)")
    options.add("--density", type=float, default=0.2, help="of the masks (0.2)")
    options.device()
    options.threads()
    options.timings(0.5, 15)
    options.json()
    run(**options.parsed(arguments))


def run(
    *, networks: Sequence[str], optimizers: Sequence[str] | None, density: float, device: str, threads: int,
    seconds: float, repeats: int, json: str | None,
) -> list[Record]:  # fmt: skip
    """Measure, print, and write JSON where asked to."""
    names = chosen(networks, ("lenet300", "resnet20"), tuple(cases()), threads)
    device, records = choose_device(device), list[Record]()
    torch.set_num_threads(threads)
    for case in (cases()[name] for name in names):
        for optimizer in optimizers or OPTIMIZERS:
            loops = {key: _loop(case, optimizer, density, device, key == ATTACHED) for key in (PLAIN, ATTACHED)}
            rates = in_turn(loops, seconds=seconds, repeats=repeats, device=device)
            pairs = zip(rates[PLAIN], rates[ATTACHED], strict=True)
            cost = statistics.median(100 * (plain / attached - 1) for plain, attached in pairs)
            about = {"network": case.name, "optimizer": optimizer, "density": density, "batch": case.batch}
            records += [record(rates[key], engine=key, **about) for key in rates]
            records[-1]["cost of a step, %"] = round(cost, 2)
            plain, attached = (statistics.median(rates[key]) for key in (PLAIN, ATTACHED))
            print(f"{case.name}, {optimizer}: {plain:.1f} steps/s, attached {attached:.1f}: {cost:+.2f} % of a step")
    if json is not None:
        write(json, header("attach", "lthfunc benchmark attach", device, threads), records)
    return records


def _loop(case: Case, optimizer: str, density: float, device: str, attached: bool) -> TimedFunction:
    """Somebody's loop, which continues from call to call."""
    start = lf.init(case.model, 0, device)
    net = lf.to_module(lf.ticket(lf.prune(density=density)(start)), case.model).to(device).train()
    made = OPTIMIZERS[optimizer](net)
    if attached:
        lf.attach(net, made, [(0, lf.prune(density=density))])
    x = torch.randn(case.batch, *case.shape, device=device)
    y = torch.randint(10, (case.batch,), device=device)

    def run(n: int) -> None:
        for _ in range(n):
            made.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            made.step()

    return run


if __name__ == "__main__":
    sys.exit(script(main))
