"""All measurements on a GPU, within a time limit: parts in the order of importance, each written when it ends.

    python -m benchmarks.gpu --minutes 8 --out FOLDER

or, installed, `lthfunc benchmark gpu`. Each part is a process with a share of the time: one that fails or takes too
long doesn't affect the others, and finished parts are on disk. What they need is compiled first. The summary has for
each network, and for several networks at once, the speed of this library, its fastest peer, and the lower bound.
"""

from __future__ import annotations

import json as as_json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from lthfunc.errors import invalid
from lthfunc.experiments.devices import choose_device

from .floors import BYTES, FLOOR, PEAK
from .kernels import KERNEL
from .records import FLOPS, MOVED, Options, Record, environment, header, script, write
from .replicates import LAUNCHED, OURS as TOGETHER, PEER
from .training import DENSE, GRAPHED, OURS, TUNED

#: Timings of each variant.
_REPEATS = 5
#: Share of a part's time for its start, for compiling what isn't compiled yet, and for warming up.
_READY = 0.4
#: Seconds beyond which a longer timing is no more exact, by the type of device.
_LONGEST = {"cpu": 0.03, "cuda": 1.0}
#: A part is stopped after this many times its time.
_PATIENCE = 1.5


class Part(NamedTuple):
    """share: of the whole time. timed: about how many variants it times."""

    name: str
    share: float
    timed: int
    arguments: tuple[str, ...]


def parts_on(device: str) -> list[Part]:
    """The parts in the order in which they are measured; on a CPU small ones, which test this program.

    They leave out single layers, which `lthfunc benchmark execution --quick` measures on a CPU as well.
    """
    if device == "cpu":
        return [
            Part("training-lenet300", 0.7, 12, ("training", "--network", "lenet300", "--quick")),
            Part("replicates-lenet300-bf16", 0.3, 2, ("replicates", "--widths", "1", "2", "--precision", "bf16")),
        ]
    layers = ("execution", "--network", "linear4096", "--network", "lenet300", "--batch", "64", "--batch", "4096")
    return [
        Part("training-lenet300", 0.10, 15, ("training", "--network", "lenet300")),
        Part("replicates-lenet300-fp32", 0.10, 9, ("replicates", "--widths", "1", "64", "256")),
        Part("training-resnet20", 0.12, 15, ("training", "--network", "resnet20")),
        Part("training-resnet18", 0.15, 15, ("training", "--network", "resnet18")),
        Part("execution-bf16", 0.12, 60, (*layers, "--precision", "bf16")),
        Part("training-conv4", 0.08, 15, ("training", "--network", "conv4")),
        Part("replicates-lenet300-tf32", 0.05, 6, ("replicates", "--widths", "64", "256", "--precision", "tf32")),
        Part("replicates-lenet300-bf16", 0.05, 6, ("replicates", "--widths", "64", "256", "--precision", "bf16")),
        Part("execution-fp32", 0.10, 60, (*layers, "--precision", "fp32")),
        Part("kernels-fp32", 0.07, 29, ("kernels", "--precision", "fp32")),
        Part("kernels-bf16", 0.04, 20, ("kernels", "--precision", "bf16")),
    ]


#: Share of the whole time for compiling.
_WARM = 0.13


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write. Raises UserError for what cannot be measured."""
    options = Options("gpu", __doc__)
    options.add("--minutes", type=float, default=8.0, help="minutes for everything, compiling included (8)")
    options.add("--device", default="auto", help="auto, cuda or cuda:N; cpu runs a tiny mode (auto)")
    options.add("--out", default="gpu-results", help="folder of each part's records and of summary.json (gpu-results)")
    run(**options.parsed(arguments))


def run(*, minutes: float, device: str, out: str) -> list[Record]:
    """Measure all parts, and write a file for each and a summary. Raises UserError for a time that is not above 0."""
    if not minutes > 0:
        raise invalid("--minutes", minutes, "a number above 0")
    device, folder, begun = choose_device(device), Path(out), time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    parts, lines, notes = parts_on(device.partition(":")[0]), list[Record](), list[str]()
    whole = 60 * minutes
    if device != "cpu":
        warm(parts, device, _WARM * whole)
    for number, part in enumerate(parts):
        left = whole - (time.monotonic() - begun)
        # What earlier parts left of their time goes to those that follow.
        budget = left * part.share / sum(each.share for each in parts[number:])
        path = folder / f"{part.name}.json"
        path.unlink(missing_ok=True)
        problem = measured(part, device, budget, left, path)
        if path.exists():
            found = as_json.loads(path.read_text(encoding="utf-8"))["records"]
            lines = [*lines, *(line for line in summary(found) if line not in lines)]
        if problem:
            notes.append(f"{part.name}: {problem}")
            print(notes[-1], file=sys.stderr, flush=True)
        head = header("gpu", f"lthfunc benchmark gpu --minutes {minutes:g}", device)
        write(folder / "summary.json", {**head, "left_out": notes}, lines)
    shown(lines, str(head["machine"]["gpu"] or head["machine"]["processor"]))
    return lines


def warm(parts: Sequence[Part], device: str, seconds: float) -> None:
    """Compile what the parts need, so that no timing waits for it: they find it on the disk."""
    until = time.monotonic() + seconds
    for part in parts:
        left = until - time.monotonic()
        if part.arguments[0] == "execution" or left < 1:
            continue
        print(f"== compiling for {part.name}", flush=True)
        _process(part, device, ("--seconds", "0.001", "--repeats", "1"), left)


def measured(part: Part, device: str, budget: float, left: float, path: Path) -> str | None:
    """Measure a part; returns why it failed, or None."""
    if left < 1:
        return "no time was left"
    longest = _LONGEST[device.partition(":")[0]]
    seconds = min(longest, max(0.01, (1 - _READY) * budget / (part.timed * (_REPEATS + 1))))
    print(f"== {part.name}: {budget:.0f} s", flush=True)
    timing = ("--seconds", f"{seconds:.3f}", "--repeats", str(_REPEATS), "--json", str(path))
    return _process(part, device, timing, min(left, _PATIENCE * budget))


def _process(part: Part, device: str, timing: Sequence[str], seconds: float) -> str | None:
    module, *arguments = part.arguments
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments, "--device", device, *timing]
    try:
        done = subprocess.run(
            command, check=False, timeout=seconds, stderr=subprocess.PIPE, text=True, env=environment()
        )
    except subprocess.TimeoutExpired:
        return f"stopped after {seconds:.0f} s, since its time was over"
    print(done.stderr, end="", file=sys.stderr, flush=True)
    return f"failed ({(done.stderr.strip().splitlines() or ['?'])[-1]})" if done.returncode else None


def summary(records: Sequence[Record]) -> list[Record]:
    """Lines of one part's records: ours, the fastest peer and the floor, in steps per second of each network."""
    lines = []
    for network in dict.fromkeys(item["network"] for item in records):
        rates = {item["variant"]: item for item in records if item["network"] == network}
        widths = {int(name.split()[0]) for name in rates if name.endswith(TOGETHER)}
        for width in sorted(widths):
            names = (name for name in (f"{width} {TOGETHER}", f"{width} {LAUNCHED}") if name in rates)
            lines += [_line(rates, name, {f"{width} {PEER}"}, f"{width} {TOGETHER}, ", width) for name in names]
        for ours in (name for name in (OURS, DENSE, KERNEL) if name in rates):
            own = {FLOOR, PEAK, BYTES}
            others = {name for name in rates if not name.startswith("lthfunc") and TOGETHER not in name} - own
            # Dense steps are compared with dense peers too; masked steps, which also apply masks, are not.
            masked = others - {TUNED, GRAPHED}
            lines.append(_line(rates, ours, others if ours == DENSE else masked, "", 1))
    return lines


def _line(rates: dict[str, Record], ours: str, peers: set[str], beside: str, width: int) -> Record:
    """beside: how the names of floors begin."""
    mine = rates[ours]
    best = max((rates[name] for name in peers if name in rates), key=lambda item: float(item["median"]), default=None)
    least, peak, moved = (rates.get(beside + name) for name in (FLOOR, PEAK, BYTES))

    def over(item: Record | None) -> float | None:
        return None if item is None or not item["median"] else round(mine["median"] / item["median"], 3)

    def second(cost: str, item: Record | None) -> float | None:
        """What all networks together take of this (FLOPs, bytes) in a second."""
        return None if item is None or cost not in item else float(f"{width * item['median'] * item[cost]:.4g}")

    return {
        "network": mine["network"], "networks": width, "variant": ours, "precision": mine["precision"],
        "density": mine["density"], "unit": "calls/s" if ours == KERNEL else "steps/s of each", "ours": mine["median"],
        "peer": None if best is None else best["variant"], "peers": None if best is None else best["median"],
        "over peer": over(best), "floor": None if least is None else least["median"], "of floor": over(least),
        "FLOP/s": second(FLOPS, mine), "bytes/s": second(MOVED, mine),
        "the card's FLOP/s": second(FLOPS, peak), "the card's bytes/s": second(MOVED, moved),
        "of the card's FLOP/s": over(peak), "of the card's bytes/s": over(moved),
    }  # fmt: skip


def shown(lines: Sequence[Record], machine: str) -> None:
    """Print the summary: rates beside the fastest peer's and the floor, then the share of the card's own rates."""
    who = ("network", "K", "precision", "variant")
    out = Table(title=f"{machine}: steps per second of each network", box=None, header_style="bold")
    for head in (*who, "ours", "fastest peer", "", "ours ÷ peer", "÷ floor"):
        out.add_column(head, justify="left" if head in ("network", "variant", "fastest peer") else "right")
    reached = Table(title="FLOP/s and bytes/s, beside the card's own", box=None, header_style="bold")
    for head in (*who, "GFLOP/s", "card", "part", "GB/s", "card", "part"):
        reached.add_column(head, justify="left" if head in ("network", "variant") else "right")
    for line in lines:
        first = line["network"], str(line["networks"]), line["precision"], line["variant"]
        out.add_row(
            *first, f"{line['ours']:,.0f}", line["peer"] or "-",
            "" if line["peers"] is None else f"{line['peers']:,.0f}",
            *(_ratio(line[name]) for name in ("over peer", "of floor")),
        )  # fmt: skip
        reached.add_row(
            *first,
            *(
                text
                for unit in ("FLOP/s", "bytes/s")
                for text in (
                    _giga(line[unit]),
                    _giga(line[f"the card's {unit}"]),
                    _ratio(line[f"of the card's {unit}"]),
                )
            ),
        )
    console = Console(width=160)
    console.print(out)
    console.print(reached)


def _ratio(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"


def _giga(rate: float | None) -> str:
    return "-" if rate is None else f"{rate / 1e9:,.1f}"


if __name__ == "__main__":
    sys.exit(script(main))
