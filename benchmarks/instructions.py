"""Where a step on the sparse engine takes its time: its instructions, each run by itself.

    lthfunc benchmark instructions --network char-transformer --density 0.1

A step takes those that don't mix examples tile by tile, and so finds more in a cache; its own time is printed as well.
All times are the processor's, of one thread.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table

import lthfunc as lf
from lthfunc.errors import invalid
from lthfunc.sparse.capture import captured
from lthfunc.sparse.kernels.instructions import OPCODES
from lthfunc.sparse.machine_state import load_optimizer
from lthfunc.sparse.program import Epilogue, Stored, builder_for, program_of
from lthfunc.sparse.updates import machine_numbers
from lthfunc.sparse.workspace import Workspace
from lthfunc.training.precision import Precision

from . import peers
from .networks import Case, cases, images
from .records import Options, Record, checked_densities, checked_sparse_precision, chosen, header, record, script, write

#: Of records: all instructions in one call.
STEP = "a step"
_DENSITIES = (0.1, 0.02)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write. Raises UserError for what cannot be measured."""
    every = [name for name, case in cases().items() if case.kind != "pixels"]
    options = Options("instructions", __doc__)
    options.networks(f"one of {', '.join(every)} (char-transformer)")
    options.densities(" and ".join(map(str, _DENSITIES)))
    options.sparse_precision()
    options.add("--repeats", type=int, default=9, help="steps that are timed (9)")
    options.json()
    given = options.parsed(arguments)
    networks = chosen(given.pop("networks"), ("char-transformer",), every, 1)
    run(networks=networks, **given)


def run(
    *, networks: Sequence[str], densities: Sequence[float] | None, precision: str, repeats: int, json: str | None
) -> list[Record]:
    """Measure, print tables, and on request write JSON. Raises UserError for fewer than 1 repeat."""
    asked = checked_sparse_precision(precision)
    if repeats < 1:
        raise invalid("--repeats", repeats, "a whole number of at least 1")
    torch.set_num_threads(1)
    lf.keep_freed_memory()
    records: list[Record] = []
    for case in (cases()[name] for name in networks):
        for density in checked_densities(densities, _DENSITIES):
            times = _times(case, density, asked, repeats)
            _tell(times, f"{case.name}, batch {case.batch}, {precision}, at {density:g}: ms of a step")
            about = {"network": case.name, "density": density, "batch": case.batch, "device": "cpu", "threads": 1,
                     "precision": precision, "unit": "ms"}  # fmt: skip
            records += [record(found, variant=name, **about) for name, (_, found) in times.items()]
    if json:
        write(json, header("instructions", "lthfunc benchmark instructions", "cpu", 1), records)
    return records


def _times(case: Case, density: float, precision: Precision, repeats: int) -> dict[str, tuple[int, list[float]]]:
    """name -> how many instructions of that name a step has, and what they take in each of `repeats` steps, in ms."""
    workspace, x, y = _ready(case, density, precision)
    names = {opcode: name for name, opcode in OPCODES.items()}
    opcodes = [names[opcode] for opcode in workspace.program.code.rows[:, 0].tolist()]
    found: dict[str, list[float]] = defaultdict(list)
    for turn in range(repeats + 1):  # the first one warms up
        taken: dict[str, float] = defaultdict(float)
        for number, name in enumerate(opcodes):
            begun = time.process_time()
            workspace.run(x, y, within=(number, number + 1))
            taken[name] += time.process_time() - begun
        begun = time.process_time()
        workspace.run(x, y)
        taken[STEP] = time.process_time() - begun
        for name, seconds in taken.items() if turn else ():
            found[name].append(1000 * seconds)
    return {name: (opcodes.count(name), times) for name, times in found.items()}


def _ready(case: Case, density: float, precision: Precision) -> tuple[Workspace, torch.Tensor, torch.Tensor]:
    """A network's workspace, and a batch."""
    state, optimizer, data = lf.init(case.model), lf.adam(peers.LR), images(case, "cpu", 2_000 + case.batch)
    if density < 1:
        state = lf.prune(density=density, score=lf.random_scores(0))(state)
    numbers = machine_numbers(optimizer)
    assert numbers is not None
    x, y = data.train.x[: case.batch], data.train.y[: case.batch]
    program = program_of(
        captured(case.model, case.shape, training=True), state.params, state.buffers, state.masks, batch=case.batch,
        stored=Stored(case.shape, x.dtype, data.scale), epilogue=Epilogue("cross_entropy", True, numbers),
        builder=builder_for(precision),
    )  # fmt: skip
    workspace = Workspace(program, state.params, state.buffers)
    load_optimizer(workspace, numbers, lf.with_optimizer(state, optimizer).opt)
    return workspace, x[None], y[None]


def _tell(times: dict[str, tuple[int, list[float]]], title: str) -> None:
    out = Table(title=title, box=None, header_style="bold")
    for head, side in (("instruction", "left"), ("number", "right"), ("ms", "right"), ("% of all", "right")):
        out.add_column(head, justify=side)  # type: ignore[arg-type]
    medians = {name: statistics.median(found) for name, (_, found) in times.items()}
    whole = medians.pop(STEP)
    together = sum(medians.values())
    for name, mine in sorted(medians.items(), key=lambda each: -each[1]):
        out.add_row(name, str(times[name][0]), f"{mine:.2f}", f"{100 * mine / together:.1f}")
    out.add_row("all, each by itself", "", f"{together:.2f}", "100")
    out.add_row(STEP, "", f"{whole:.2f}", "")
    Console().print(out)


if __name__ == "__main__":
    sys.exit(script(main))
