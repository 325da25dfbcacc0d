"""One training on several ranks: a step's time and traffic, measured and compared with a model.

    python -m benchmarks.scale --ranks 1 --ranks 2 --ranks 4 --rate 1000 --rate 100 --json FILE

or, installed, `lthfunc benchmark scale`. Ranks are processes of one thread; gloo carries their sums over the loopback
or, with --rate, over links of that many megabits a second (Linux, as root). The model's inputs are the time of a
step that sends nothing, the time that synchronisation adds, and the link's latency and rate; none is taken from the
steps that it is compared with.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lthfunc.errors import UserError, invalid

from .links import hosts
from .networks import cases
from .records import Options, Record, chosen, header, record, saying, script, write
from .scale_model import Link, Traffic, outlook, sent, step_time
from .scale_rank import LARGE

_NETWORKS = ("lenet300", "resnet20")
_RANKS = (1, 2, 4)
_OUTLOOK = (8, 64, 256, 1000)
#: Of each measurement.
_SECONDS, _QUICK_SECONDS = 1.5, 0.3


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write. Raises UserError for what cannot be measured."""
    options = Options("scale", __doc__)
    options.networks("default: lenet300 and resnet20")
    options.add("--ranks", action="append", default=[], type=int, help="repeatable (1, 2 and 4)")
    options.add("--density", dest="densities", action="append", default=[], type=float, help="repeatable (1 and 0.1)")
    options.add(
        "--rate", dest="rates", action="append", default=[], type=float, metavar="MBIT",
        help="also measure over links of this many megabits per second (Linux, as root); repeatable",
    )  # fmt: skip
    options.add("--engine", default="compile", help="eager or compile (compile)")
    options.add("--quick", action="store_true", help="LeNet-300-100 on two ranks: under a minute")
    options.json()
    run(**options.parsed(arguments))


def run(
    *, networks: list[str], ranks: list[int], densities: list[float], rates: list[float], engine: str = "compile",
    quick: bool = False, json: str | None = None,
) -> list[Record]:  # fmt: skip
    """Measure these networks. Raises UserError for unknown names and unavailable links."""
    names = chosen(networks, _NETWORKS[:1] if quick else _NETWORKS, tuple(cases()), 1)
    numbers = sorted(set(ranks or (_RANKS[:2] if quick else _RANKS)))
    shares = sorted(set(densities or (1.0, 0.1)), reverse=True)
    _check(names, numbers, shares, rates, engine)
    asked = _asked(names, shares, engine, quick)
    say = saying(", ".join(names))
    say("one process alone")
    alone = _alone(asked)
    found: list[Record] = []
    for rate in (None, *rates):
        for number in numbers:
            if number > 1:
                say(f"{number} ranks" + ("" if rate is None else f", {rate:g} megabits a second"))
                found += _beside(_measured(asked, number, rate), alone, number, rate)
    _show(found, alone, shares)
    if json is not None:
        words = [f"--ranks {each}" for each in numbers] + [f"--rate {each:g}" for each in rates]
        write(json, header("scale", " ".join(["lthfunc benchmark scale", *words]), "cpu", 1), found)
    return found


def _check(
    names: Sequence[str], ranks: Sequence[int], densities: Sequence[float], rates: Sequence[float], engine: str
) -> None:
    for number in ranks:
        uneven = [name for name in names if number < 1 or cases()[name].batch % number]
        if uneven:
            batch = cases()[uneven[0]].batch
            raise invalid("--ranks", number, f"numbers that divide the batch of {uneven[0]}, {batch}")
    for density in densities:
        if not 0 < density <= 1:
            raise invalid("--density", density, "numbers above 0, up to 1")
    for rate in rates:
        if rate < 1:
            raise invalid("--rate", rate, "megabits a second, 1 or more")
    if engine not in ("eager", "compile"):
        raise invalid("--engine", engine, "eager or compile")


def _asked(names: Sequence[str], densities: Sequence[float], engine: str, quick: bool) -> dict[str, Any]:
    return {
        "cases": [{"network": name, "batch": cases()[name].batch} for name in names],
        "densities": list(densities), "engine": engine, "seconds": _QUICK_SECONDS if quick else _SECONDS,
        "repeats": 3 if quick else 5,
    }  # fmt: skip


def _alone(asked: dict[str, Any]) -> dict[str, float]:
    """Seconds of a step of one process, by network."""
    steps = _measured({**asked, "densities": asked["densities"][:1]}, 1, None)["steps"]
    return {each["network"]: each["computing"] for each in steps}


def _measured(asked: dict[str, Any], ranks: int, rate: float | None) -> dict[str, Any]:
    """Run the ranks; returns rank 0's measurements. Raises UserError if a rank fails."""
    with hosts(ranks, rate) as spots:
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            port = held.getsockname()[1]
        processes = [
            subprocess.Popen(
                [*spot.prefix, sys.executable, "-m", f"{__package__}.scale_rank",
                 json.dumps({**asked, "interface": spot.interface})],
                env={**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks),
                     "MASTER_ADDR": spot.head, "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"},
                cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for rank, spot in enumerate(spots)
        ]  # fmt: skip
        try:
            said = [process.communicate(timeout=900) for process in processes]
        finally:
            for process in processes:
                process.kill()
    for process, (_, errors) in zip(processes, said, strict=True):
        if process.returncode:
            raise UserError(f"a rank ended with {process.returncode}: {(errors.strip().splitlines() or [''])[-1]}")
    return dict(json.loads(said[0][0].strip().splitlines()[-1]))


def _beside(measured: dict[str, Any], alone: dict[str, float], ranks: int, rate: float | None) -> list[Record]:
    """Records of measured steps, each with the model's prediction."""
    records = []
    for each in measured["steps"]:
        compute = each["computing"]
        across = rate * 1e6 / 8 if rate else sent(Traffic(LARGE, 1), ranks) / measured["large"]
        link = Link(measured["latency"], across, each["waiting"])
        for density, found in each["densities"].items():
            traffic = Traffic(found["numbers"] + each["norms"], each["collectives"])
            modelled = step_time(compute, traffic, link, ranks)
            records.append(
                record(
                    [1000 * seconds for seconds in found["seconds"]],
                    network=each["network"], variant=f"{ranks} ranks", device="cpu", threads=1, batch=each["batch"],
                    density=float(density), precision="fp32", unit="ms/step", ranks=ranks, rate_mbit=rate,
                    modelled=round(1000 * modelled, 3), compute_ms=round(1000 * compute, 3),
                    latency_ms=round(1000 * link.latency, 3), waiting_ms=round(1000 * link.waiting, 3),
                    bytes_per_step=round(found["bytes"]),
                    modelled_bytes=round(sent(traffic, ranks)), one_rank_ms=round(1000 * alone[each["network"]], 3),
                )
            )  # fmt: skip
    return records


def _show(records: Sequence[Record], alone: dict[str, float], densities: Sequence[float]) -> None:
    console = Console(width=150)
    for network in dict.fromkeys(item["network"] for item in records):
        batch = cases()[network].batch
        title = f"{network}, batch {batch}; one rank takes {1000 * alone[network]:.2f} ms a step"
        heads = "ranks", "link", "density", "measured ms", "modelled ms", "÷", "kB sent", "modelled kB", "of dense"
        table = _table(title, heads, 0)
        dense: dict[Any, float] = {}
        for item in (item for item in records if item["network"] == network):
            place = item["ranks"], item["rate_mbit"]
            if item["density"] == densities[0]:
                dense[place] = item["bytes_per_step"]
            table.add_row(
                str(item["ranks"]),
                f"{item['rate_mbit']:g} Mbit/s" if item["rate_mbit"] else "loopback",
                f"{item['density']:g}",
                f"{item['median']:.2f}",
                f"{item['modelled']:.2f}",
                f"{item['median'] / item['modelled']:.2f}",
                f"{item['bytes_per_step'] / 1000:,.1f}",
                f"{item['modelled_bytes'] / 1000:,.1f}",
                f"{item['bytes_per_step'] / dense[place]:.3f}" if dense[place] else "",
            )
        console.print(table)
    other = "network", "GPUs", "density", *(f"{number:,}" for number in _OUTLOOK), "half at"
    table = _table("The same model for other machines: computing's share of the time, at a fixed batch", other, 2)
    for line in outlook(_OUTLOOK):
        table.add_row(*line)
    console.print(table)


def _table(title: str, heads: Sequence[str], words: int) -> Table:
    """An empty table; this many of its first columns hold words, the others numbers."""
    table = Table(title=title, box=None)
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number < words else "right")
    return table


if __name__ == "__main__":
    sys.exit(script(main))
