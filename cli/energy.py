"""``lthfunc energy`` and ``lthfunc breakeven``: the energy of inference, and when a ticket pays back."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from lthfunc.errors import UserError, invalid

from . import options as o
from .console import busy, put_json, put_parts, put_words, say, screen
from .deployment import AllThreads, ExamplesAtOnce, Round, RunSeed, check_batch, headline


@o.with_settings("energy")
def energy(
    run: Annotated[str, typer.Argument(help="The run's folder.")],
    given: o.Given,
    samples: Annotated[
        int, typer.Option("--samples", parser=o.whole, metavar="N", help="Examples that each program processes.")
    ] = 100_000,
    repeats: Annotated[
        int,
        typer.Option(
            "--repeats",
            parser=o.whole,
            metavar="N",
            help="Repeats to divide the examples into.",
        ),
    ] = 5,
    batch_size: ExamplesAtOnce = 64,
    number: Round = None,
    seed: RunSeed = None,
    threads: AllThreads = None,
    trust: o.Trust = False,
    json: o.Json = False,
) -> None:
    """Meter the energy of inference: a run's dense network, its masked ticket and the ticket's fastest program.

    The measurement is saved in the run's folder for `lthfunc breakeven` and `lthfunc report`.
    """
    o.check_least(
        ("--samples", samples, 1), ("--repeats", repeats, 2), ("--batch-size", batch_size, 1), ("--threads", threads, 1)
    )  # fmt: skip
    with busy("loading PyTorch"):
        from lthfunc.deployment.specialize import specialize
        from lthfunc.deployment.tuning_cache import tunings_file
        from lthfunc.energy.inference import metered_inference, ready_batches
        from lthfunc.energy.meter import check_meter, metering
        from lthfunc.experiments.devices import choose_device
        from lthfunc.reports.energy import inference_table, measured_values
        from lthfunc.runs.measurements import keep_measurement
        from lthfunc.runs.tickets import tickets_of_run
        from lthfunc.training.cpu_threads import using_threads
        from lthfunc.training.malloc import keep_freed_memory

    country = given.get("country")
    check_meter(country)
    device = choose_device(given.get("device", "auto"))
    dense, found = tickets_of_run(Path(run), [0, number], seed, given.get("data_dir"), trusted=trust)
    check_batch(batch_size, found.data)
    keep_freed_memory()
    amounts: dict[str, list[Any]] = {}
    with using_threads(threads), busy("making programs") as update:
        batches = ready_batches(found.data, batch_size, device)
        program = specialize(found.ticket, found.model, batches[0], device, tunings=tunings_file())
        programs = {
            "dense": specialize(dense.ticket, found.model, batches[0], device, format="dense"),
            "masked": specialize(found.ticket, found.model, batches[0], device, format="dense"),
            "specialised": program,
        }
        with metering(device, country) as meter:
            for name, amount in metered_inference(programs, batches, samples, repeats, meter):
                amounts.setdefault(name, []).append(amount)
                update(f"{name}: {len(amounts[name])} of {repeats}")
            source = meter.source
    item = {
        "round": found.number, "seed": found.seed, "device": device, "samples": samples,
        "repeats": repeats, "batch_size": batch_size, "form": program.report.form,
        "source": source.how, "country": source.country, "assumed": source.assumed, "formats": measured_values(amounts),
    }  # fmt: skip
    try:
        if json:
            put_json({"run": str(Path(run)), **item})
            return
        put_parts(headline(found), source.words, "", inference_table(item))
    finally:  # after the output: the run's folder may be read-only
        keep_measurement(Path(run), "energy", device, item)


def breakeven(
    sparse: Annotated[
        str,
        typer.Argument(help="Run whose inference was measured, or costs as FIXED+COST/N, e.g. 1e-3+8e-5/50000."),
    ],
    dense: Annotated[
        str | None,
        typer.Argument(help="The same for the dense network. \\[default: round 0 of the same run]"),
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="NAME",
            help="The ticket's program: specialised or masked.",
            autocompletion=o.names("specialised", "masked"),
        ),
    ] = "specialised",
    price: Annotated[
        float | None,
        typer.Option(
            "--price", parser=o.number, metavar="X", help="Price of a kWh, to include money in the comparison."
        ),
    ] = None,
    evaluation: Annotated[
        bool,
        typer.Option("--evaluation", help="Count evaluations as part of the search as well."),
    ] = False,
    unit: Annotated[str, typer.Option("--unit", metavar="TEXT", help="Unit of FIXED and COST.")] = "kg CO₂eq",
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", parser=o.picture, metavar="FILE", help="Draw total costs over inferences (.png or .svg)."
        ),
    ] = None,
    json: o.Json = False,
) -> None:
    """Compute after how many inferences a ticket has paid back the cost of finding it.

    Costs are emissions, energy, time and money. The 95 % interval comes from the spread between replicates and repeats.
    """
    if price is not None and not 0 < price < math.inf:
        raise invalid("--price", price, "a number above 0")
    constants = [_constants(text) for text in (sparse, dense or "")]
    if (constants[0] is None) != (constants[1] is None) and dense is not None:
        raise UserError(f"{sparse} and {dense}: give two runs, or two FIXED+COST/N")
    if constants[0] is not None and dense is None:
        raise UserError(f"{sparse}: give the dense network's FIXED+COST/N after it")
    from lthfunc.energy.breakeven import Costs
    from lthfunc.reports.breakeven import (
        as_values,
        break_evens,
        breakeven_chart,
        breakeven_table,
        pair_break_even,
        run_costs,
    )
    from lthfunc.runs.folder import whole_run
    from lthfunc.runs.measurements import measurements

    if constants[0] is not None and constants[1] is not None:
        mine, theirs = (Costs([fixed], [each]) for fixed, each in (constants[0], constants[1]))
        found = [pair_break_even("cost", unit, mine, theirs)]
    else:
        names = [sparse, dense or sparse]
        sides = [
            run_costs(name, whole_run(Path(name)).records, measurements(Path(name))[0], dense=number == 1,
                    format="dense" if number == 1 else format)
            for number, name in enumerate(names)
        ]  # fmt: skip
        if sides[0].how != sides[1].how:
            say(f"the two runs were measured differently: {sides[0].how}; {sides[1].how}")
        same = Path(names[0]).resolve() == Path(names[1]).resolve()
        found = break_evens(sides[0], sides[1], same=same, price=price, evaluation=evaluation)
    if plot:
        from lthfunc.reports.matplotlib_figures import panels, save

        charts = [breakeven_chart(each) for each in found]
        save(panels(charts, f"{sparse} against {dense or 'its dense network'}"), plot)
    if json:
        put_json({"sparse": sparse, "dense": dense or sparse, "results": as_values(found)})
        return
    screen().print(breakeven_table(found))
    if all(each.quantity == "time" for each in found):
        put_words("only the time of these trainings is known; for the rest, prune or train with --energy")


def _constants(text: str) -> tuple[float, float] | None:
    """FIXED+COST/N as (fixed cost, cost per inference); None for the name of a run."""
    number = r"(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)"
    found = re.fullmatch(rf"{number}\+{number}(?:/{number})?", text)
    if found is None:
        return None
    count = float(found[3] or 1)
    if count == 0:
        raise invalid("FIXED+COST/N", text, "an N above 0")
    return float(found[1]), float(found[2]) / count
