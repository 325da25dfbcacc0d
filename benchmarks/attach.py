"""What `lf.attach` costs a step of a plain PyTorch loop.

lthfunc benchmark attach --network resnet20 --optimizer sgd

One loop, to which it is attached in every other turn, on masks that keep a fifth of the weights: where a loop's tensors
lie in memory makes more of a difference than what is measured.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import nn

import lthfunc as lf
from lthfunc.deployment.timing import in_turn
from lthfunc.experiments.devices import choose_device

from .networks import Case, cases
from .records import Options, Record, chosen, cost, header, record, saying, script, write

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
    options.turns()
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
            rates = _in_turn(case, optimizer, density, device, seconds, repeats)
            more = cost(rates[ATTACHED], rates[PLAIN])
            about = {"network": case.name, "optimizer": optimizer, "density": density, "batch": case.batch}
            records += [record(rates[key], engine=key, **about) for key in rates]
            records[-1]["cost of a step, %"] = round(more, 2)
            plain, attached = (statistics.median(rates[key]) for key in (PLAIN, ATTACHED))
            print(f"{case.name}, {optimizer}: {plain:.1f} steps/s, attached {attached:.1f}: {more:+.2f} % of a step")
    if json is not None:
        write(json, header("attach", "lthfunc benchmark attach", device, threads), records)
    return records


def _in_turn(
    case: Case, optimizer: str, density: float, device: str, seconds: float, repeats: int
) -> dict[str, list[float]]:
    """Steps per second of somebody's loop, which continues from turn to turn, with and without."""
    start = lf.init(case.model, 0, device)
    net = lf.to_module(lf.ticket(start), case.model).to(device).train()
    made = OPTIMIZERS[optimizer](net)
    x = torch.randn(case.batch, *case.shape, device=device)
    y = torch.randint(10, (case.batch,), device=device)

    def loop(n: int) -> None:
        for _ in range(n):
            made.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            made.step()

    rates: dict[str, list[float]] = {PLAIN: [], ATTACHED: []}
    say = saying(f"{case.name}, {optimizer}")
    for turn in range(repeats):
        say(f"turn {turn + 1} of {repeats}")
        for engine, found in rates.items():
            within = lf.attach(net, made, [(0, lf.prune(density=density))]) if engine == ATTACHED else nullcontext()
            with within:
                found += in_turn({engine: loop}, seconds=seconds, repeats=1, device=device)[engine]
    return rates


if __name__ == "__main__":
    sys.exit(script(main))
