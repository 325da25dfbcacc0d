"""``lthfunc specialize`` and ``lthfunc export``: a trained ticket as a fast program or a file."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from lthfunc.catalog.deployment import EXPORTS, FORMATS
from lthfunc.errors import UserError, failing_as_options, invalid

from . import options as o
from .console import busy, put, put_json, put_parts, put_words

Round = Annotated[
    Any,
    typer.Option(
        "--round",
        parser=o.round_of_run,
        metavar="N|winning|last",
        help="Round whose network is used. \\[default: the winning ticket's; the last where no ticket won]",
    ),
]
ExamplesAtOnce = Annotated[int, typer.Option("--batch-size", parser=o.whole, metavar="N", help="Examples per batch.")]
AllThreads = Annotated[
    int | None, typer.Option("--threads", parser=o.whole, metavar="N", help="CPU threads. \\[default: all]")
]
RunSeed = Annotated[
    int | None,
    typer.Option("--seed", parser=o.whole, metavar="N", help="One of the run's seeds. \\[default: the first]"),
]


@o.with_settings("specialize")
def specialize(
    run: Annotated[str, typer.Argument(help="The run's folder.")],
    given: o.Given,
    number: Round = None,
    seed: RunSeed = None,
    format: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="NAME",
            help=f"auto ({FORMATS.auto}), or one of: {FORMATS.described}",
            autocompletion=FORMATS.complete,
        ),
    ] = "auto",
    batch_size: ExamplesAtOnce = 64,
    trust: o.Trust = False,
    threads: AllThreads = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Repeat measurements that were made before.")] = False,
    json: o.Json = False,
) -> None:
    """Find the fastest program for a trained ticket on this machine, and report its time, FLOPs, bytes and accuracy."""
    FORMATS.check(format)
    o.check_least(("--batch-size", batch_size, 1), ("--threads", threads, 1))
    with busy("loading PyTorch"):
        from lthfunc.deployment.accuracy import accuracy_of
        from lthfunc.deployment.candidates import masked_module
        from lthfunc.deployment.specialize import specialize as lf_specialize
        from lthfunc.deployment.tuning_cache import tunings_file
        from lthfunc.experiments.devices import choose_device
        from lthfunc.experiments.metrics import metric_scale
        from lthfunc.experiments.objective import metric_of_name
        from lthfunc.runs.measurements import keep_measurement
        from lthfunc.runs.tickets import tickets_of_run
        from lthfunc.training.cpu_threads import using_threads
        from lthfunc.training.malloc import keep_freed_memory
        from lthfunc.trees.ops import scaled

    device = choose_device(given.get("device", "auto"))
    (found,) = tickets_of_run(Path(run), [number], seed, given.get("data_dir"), trusted=trust)
    data = found.data
    check_batch(batch_size, data)
    keep_freed_memory()
    with using_threads(threads), busy(_work(found, batch_size, format)):
        sample = scaled(data.test.x[:batch_size], data.scale)
        with failing_as_options({"format": FORMATS.option}):
            program = lf_specialize(
                found.ticket, found.model, sample, device, format=format, tunings=tunings_file(), fresh=fresh,
                beside=["onnxruntime"] if find_spec("onnxruntime") is not None else [],
            )  # fmt: skip
        whole = masked_module(found.model, found.ticket, device)
        metric = metric_of_name(found.config, data)
        reached, masked = (accuracy_of(each, data, batch_size, device, metric) for each in (program, whole))
        scale = metric_scale(found.config.metric, (reached, masked))
    report = program.report
    about = {"round": found.number, "seed": found.seed, "test_accuracy": reached, "masked_test_accuracy": masked}
    item = {**about, **_as_json(report)}
    try:
        if json:
            put_json({"run": str(Path(run)), **item})
            return
        from lthfunc.reports.program_tables import (
            beside_line,
            cost_lines,
            form_table,
            layer_cost_table,
            steadiness_line,
        )

        from .results import AFTER_TRAINING

        table = form_table(report)
        remarks = filter(None, [beside_line(report), steadiness_line(report)])
        put_parts(headline(found), "")
        if table is not None:
            put_parts(table, *remarks, "")
        put_parts(
            layer_cost_table(report), "",
            *cost_lines(report),
            f"{report.form}: test {scale.word} {scale.text(reached)} (masked network: {scale.text(masked)}); "
            f"the outputs differ by at most {report.difference:.1e} of the largest",
        )  # fmt: skip
        put_words(AFTER_TRAINING, style="dim")
        for name, reason in report.left_out.items():
            line = reason if reason.startswith(f"{name} ") else f"without {name}: {reason}"
            put_words(line, style="dim")
    finally:  # after the output: the run's folder may be read-only
        keep_measurement(Path(run), "execution", device, item)


@o.with_settings("export")
def export(
    run: Annotated[str, typer.Argument(help="The run's folder.")],
    given: o.Given,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="FORMAT",
            help=f"{EXPORTS.described}; or module:function. \\[required]",
            autocompletion=EXPORTS.complete,
            show_default=False,
        ),
    ] = "",
    out: Annotated[
        str | None,
        typer.Option("--out", metavar="PATH", help="The file or folder. \\[default: in the run's folder]"),
    ] = None,
    number: Round = None,
    seed: RunSeed = None,
    initial: Annotated[
        bool,
        typer.Option("--initial", help="Export the round's weights before training instead of after it."),
    ] = False,
    trust: o.Trust = False,
    json: o.Json = False,
) -> None:
    """Export a trained ticket for other programs, check its outputs there, and report its size."""
    if not to:  # here, since Typer's line lists no formats
        raise UserError(f"--to: missing (expected one of {', '.join(EXPORTS.known())})")
    EXPORTS.check(to)
    with busy("loading PyTorch"):
        from lthfunc.deployment.export.exportable import EXAMPLES, Exported, dense_sizes, exportable_of
        from lthfunc.runs import safe_files
        from lthfunc.runs.tickets import tickets_of_run
        from lthfunc.trees.atomic_io import safe_file_name

    suffix = EXPORTS[to].suffix if to in EXPORTS else ""
    exporter = EXPORTS.make(to, {}, list)
    data_dir = given.get("data_dir")
    (found,) = tickets_of_run(Path(run), [number], seed, data_dir, trusted=trust, trained=not initial)
    which = ("" if found.one_seed else f"-seed{found.seed}") + ("-initial" if initial else "")
    name = f"{safe_file_name(found.model.name)}-round{found.number:02d}{which}-{safe_file_name(to)}{suffix}"
    path = Path(out) if out else Path(run) / name
    if not out:
        safe_files.check_tree(Path(run), path)
    if out and suffix and path.suffix != suffix:
        raise invalid("--out", out, f"a name that ends in {suffix}")
    if not path.parent.is_dir():
        raise invalid("--out", str(path), f"a file in an existing folder, which {str(path.parent)!r} is not")
    subject = exportable_of(found.model, found.ticket, found.data.shape)
    with busy(f"writing {path.name}"), failing_as_options({"export": "--to"}):
        written = exporter(subject, path)
        others = written.beside if isinstance(written, Exported) else list(written or ())
        rows = [*dense_sizes(found.ticket), (f"{path.name} ({to})", _size(path, others))]
    difference = written.difference if isinstance(written, Exported) else None  # a user's own is not checked
    if json:
        about = {"file": str(path), "beside": [str(each) for each in others], "round": found.number}
        about |= {"seed": found.seed, "trained": found.trained, "bytes": dict(rows), "difference": difference}
        put_json(about)
        return
    from lthfunc.reports.program_tables import size_table

    put_parts(headline(found), "", size_table(rows), "")
    if difference is not None:
        apart = f"differ from the masked network's by at most {difference:.1e} of the largest"
        same = "are the masked network's, bit for bit"
        put_words(f"its outputs for {EXAMPLES} random inputs {apart if difference else same}")
    if to in EXPORTS and EXPORTS[to].dense:
        sparse = " and ".join(name for name, entry in EXPORTS.items() if not entry.dense)
        line = f"{to} stores pruned weights too, so its file is no smaller for them; {sparse} leave them out"
        put_words(line, style="dim")
    if subject.why_not_compacted:
        put_words(subject.why_not_compacted, style="dim")
    for written in (path, *others):
        put(written)


def _size(path: Path, others: list[Path]) -> int:
    files = {path, *others} if path.is_file() else set(path.iterdir())
    return sum(each.stat().st_size for each in files)


def check_batch(size: int, data: Any) -> None:
    """Raise UserError if the test set is smaller than the batch size."""
    if size > len(data.test.x):
        raise invalid("--batch-size", size, f"at most {len(data.test.x):,}, the size of the test set")


def headline(found: Any) -> str:
    """A line that describes the network."""
    from lthfunc.trees.ops import count

    left = count(found.ticket.masks)
    return (
        f"{found.model.name} on {found.data.name}: {found.words}: "
        f"{left.kept:,} of {left.total:,} weights ({100 * left.density:.2f} %)"
    )


def _work(found: Any, batch_size: int, format: str) -> str:
    """What is done meanwhile, in words."""
    what = "building every form, then timing all in turns" if format == "auto" else f"building {format}"
    return f"round {found.number}, batches of {batch_size}: {what}"


def _as_json(report: Any) -> dict[str, Any]:
    cost = report.cost
    measured = report.measured
    return {
        "form": report.form,
        "formats": report.formats,
        "left_out": report.left_out,
        "difference": report.difference,
        "bytes": {"dense": report.bytes[0], "program": report.bytes[1]},
        "flops": {"dense": cost.flops, "effective": cost.effective_flops, "compact": report.compact_flops},
        "compression_ratio": cost.compression_ratio,
        "theoretical_speedup": cost.theoretical_speedup,
        "layers": {name: layer._asdict() for name, layer in cost.layers.items()},
        "batch_size": None if measured is None else measured.batch,
        "seconds_a_batch": None if measured is None else measured.seconds,
        "turns": None if measured is None else measured.turns,
        "processor_share": None if measured is None else measured.processor_share,
        "program": report.name,
    }
