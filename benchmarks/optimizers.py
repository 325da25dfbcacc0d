"""What the parts of an optimiser cost a step: clipping, averages and others, on our loop.

lthfunc benchmark optimizers --network lenet5 --engine sparse --density 0.1

The same loop with and without each part, in turns. `accumulate` divides the same batch in four.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from typing import Any

import torch

import lthfunc as lf
from lthfunc.deployment.timing import TimedFunction, in_turn
from lthfunc.experiments.devices import choose_device

from . import peers
from .loops import user_loop
from .networks import Case, cases, images
from .records import Options, Record, chosen, cost, header, record, saying, script, write

#: Of records.
PLAIN = "adamw"
_RATE, _DECAY, _PARTS = peers.LR, 0.01, 4
ENGINES: dict[str, Any] = {"eager": "eager", "compile": "compile", "sparse": lf.sparse_engine}
#: Those that the sparse engine has instructions for.
CHAINS: dict[str, lf.Optimizer] = {
    PLAIN: lf.adamw(_RATE, weight_decay=_DECAY),
    "decays": lf.adamw(_RATE, weight_decay=_DECAY, decays=lf.is_matrix),
    "clip_by_global_norm": lf.chain(lf.clip_by_global_norm(1.0), lf.adamw(_RATE, weight_decay=_DECAY)),
    "ema": lf.chain(lf.adamw(_RATE, weight_decay=_DECAY), lf.ema(0.999)),
    "accumulate": lf.chain(lf.accumulate(_PARTS), lf.adamw(_RATE, weight_decay=_DECAY)),
    "all": lf.chain(
        lf.accumulate(_PARTS),
        lf.clip_by_global_norm(1.0),
        lf.adamw(_RATE, weight_decay=_DECAY, decays=lf.is_matrix),
        lf.ema(0.999),
    ),
}


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write. Raises UserError for what cannot be measured."""
    options = Options("optimizers", __doc__)
    options.networks("lenet300, lenet5, resnet20 or another of `lthfunc benchmark training` (lenet300)")
    options.add("--engine", dest="engines", action="append", choices=ENGINES, help="repeatable (all)")
    options.add("--part", dest="parts", action="append", choices=[*CHAINS][1:], help="repeatable (all)")
    options.add("--density", type=float, default=0.2, help="of the masks (0.2)")
    options.turns()
    run(**options.parsed(arguments))


def run(
    *, networks: Sequence[str], engines: Sequence[str] | None, parts: Sequence[str] | None, density: float, device: str,
    threads: int, seconds: float, repeats: int, json: str | None,
) -> list[Record]:  # fmt: skip
    """Measure, print, and write JSON where asked to."""
    names = chosen(networks, ("lenet300",), tuple(cases()), threads)
    device, records = choose_device(device), list[Record]()
    torch.set_num_threads(threads)
    for case in (cases()[name] for name in names):
        for engine in engines or ENGINES:
            found = {name: _loop(case, engine, name, density, device) for name in (PLAIN, *(parts or [*CHAINS][1:]))}
            say = saying(f"{case.name}, {engine}")
            rates = in_turn(found, seconds=seconds, repeats=repeats, device=device, say=say)
            for name, mine in rates.items():
                more = cost(mine, rates[PLAIN])
                about = {"network": case.name, "engine": engine, "density": density, "batch": case.batch, "part": name}
                records.append(record(mine, **about) | {"cost of a step, %": round(more, 2)})
                print(f"{case.name}, {engine}, {name}: {statistics.median(mine):.1f} steps/s, {more:+.1f} % of a step")
    if json is not None:
        write(json, header("parts", "lthfunc benchmark optimizers", device, threads), records)
    return records


def _loop(case: Case, engine: str, name: str, density: float, device: str) -> TimedFunction:
    optimizer = CHAINS[name]
    parts = _PARTS if name in ("accumulate", "all") else 1
    trainer = lf.make_trainer(
        case.model, images(case, device), optimizer=optimizer, batch_size=case.batch // parts, engine=ENGINES[engine]
    )
    return user_loop(trainer, lf.prune(density=density, score=lf.random_scores(0))(lf.init(case.model, 0, device)))


if __name__ == "__main__":
    sys.exit(script(main))
