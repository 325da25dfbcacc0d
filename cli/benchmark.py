"""``lthfunc benchmark``: the measurements of this library, on one's own machine."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Trust, number, whole

Threads = Annotated[int, typer.Option("--threads", parser=whole, metavar="N", help="CPU threads.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N.")]
JsonFile = Annotated[str | None, typer.Option("--json", metavar="FILE", help="Write the records here.")]
Plot = Annotated[str | None, typer.Option("--plot", metavar="FILE", help="Draw speed against density here.")]

app = typer.Typer(help="Measure this library, its peers and the floors on this machine.", no_args_is_help=True)


@app.callback()
def _anywhere(
    context: typer.Context,
    on: Annotated[
        str,
        typer.Option(
            "--on", metavar="WHERE", help="Measure on a node of a cluster: ray, or ray://HOST:PORT. \\[default: here]"
        ),
    ] = "local",
    cores: Annotated[
        int, typer.Option("--cores", parser=whole, metavar="N", help="With --on, that the measurement has to itself.")
    ] = 1,
    gpus: Annotated[int, typer.Option("--gpus", parser=whole, metavar="N", help="With --on, the same of GPUs.")] = 0,
) -> None:
    """Options before the name of a benchmark."""
    if on == "local" or context.resilient_parsing:
        return
    from .measuring import measured_on

    words = list(context.find_root().obj)
    raise typer.Exit(measured_on(on, cores, gpus, words[words.index(str(context.invoked_subcommand)) :]))


@app.command("training")
def training(
    network: Annotated[
        list[str] | None,
        typer.Option("--network", help="lenet300, lenet5, lenet5-wide, conv4, resnet20 (these by default), resnet18."),
    ] = None,
    threads: Threads = 1,
    density: Annotated[float, typer.Option("--density", parser=number, metavar="X", help="Of the masks.")] = 0.2,
    precision: Annotated[str, typer.Option("--precision", help="Of our engines: fp32, tf32 or bf16.")] = "fp32",
    device: Device = "cpu",
    quick: Annotated[bool, typer.Option("--quick", help="LeNet-300-100 alone; ends in under a minute.")] = False,
    json: JsonFile = None,
    plot: Annotated[str | None, typer.Option("--plot", metavar="FILE", help="Draw bars and floors here.")] = None,
) -> None:
    """Masked training steps per second, side by side in one run: min, median and max."""
    from lthfunc_benchmarks.training import run

    run(
        networks=network or [],
        threads=threads,
        density=density,
        precision=precision,
        device=device,
        quick=quick,
        json=json,
        plot=plot,
    )


@app.command("gpu")
def gpu(
    minutes: Annotated[
        float,
        typer.Option("--minutes", parser=number, metavar="X", help="All of it, compiling included."),
    ] = 8.0,
    out: Annotated[
        str, typer.Option("--out", metavar="FOLDER", help="Each part's records, as it ends, and summary.json.")
    ] = "gpu-results",
    device: Annotated[str, typer.Option("--device", help="auto, cuda or cuda:N; cpu in a tiny mode.")] = "auto",
) -> None:
    """Everything that is measured on a GPU, within a time: trainings, networks side by side, inference, floors."""
    from lthfunc_benchmarks.gpu import run

    run(minutes=minutes, device=device, out=out)


@app.command("kernels")
def kernels(
    precision: Annotated[str, typer.Option("--precision", help="fp32, tf32 or bf16.")] = "fp32",
    device: Annotated[str, typer.Option("--device", help="auto, cuda or cuda:N.")] = "auto",
    json: JsonFile = None,
) -> None:
    """Triton kernels on a GPU, beside the same by compiled PyTorch: what tells whether an engine should use them."""
    from lthfunc_benchmarks.kernels import run

    run(device=device, precision=precision, json=json)


@app.command("sparse")
def sparse(
    network: Annotated[
        list[str] | None,
        typer.Option("--network", help="lenet300, lenet5, conv4, resnet20 (these by default), resnet18, lenet5-wide."),
    ] = None,
    threads: Threads = 1,
    device: Device = "cpu",
    ticket: Annotated[
        str | None, typer.Option("--ticket", metavar="FILE", help="Also measure this ticket of the one --network.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="LeNet-300-100 at three densities; ends in under a minute.")
    ] = False,
    json: JsonFile = None,
    plot: Plot = None,
) -> None:
    """Training on surviving weights against density, side by side with the dense engine and peers."""
    from lthfunc_benchmarks.sparse import run

    run(networks=network or [], threads=threads, device=device, ticket=ticket, quick=quick, json=json, plot=plot)


@app.command("execution")
def execution(
    run_folder: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="Measure this run's trained tickets instead of random masks.")
    ] = None,
    network: Annotated[
        list[str] | None,
        typer.Option(
            "--network",
            help="lenet300, lenet5, conv4, resnet20 (these by default), resnet18, vgg16; single layers: linear1024, "
            "linear4096, conv64, conv256.",
        ),
    ] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option("--batch", parser=whole, metavar="N", help="Repeatable. \\[default: 1, 64 and 1024]"),
    ] = None,
    threads: Threads = 1,
    device: Device = "cpu",
    precision: Annotated[str, typer.Option("--precision", help="fp32; on a GPU also tf32 or bf16.")] = "fp32",
    quick: Annotated[
        bool, typer.Option("--quick", help="LeNet-300-100 at two densities; ends in under a minute.")
    ] = False,
    trust: Trust = False,
    json: JsonFile = None,
    plot: Plot = None,
) -> None:
    """Inference of tickets against density: every form, the tuned program, peers, floors; rates and latencies."""
    from lthfunc_benchmarks.execution import run

    run(
        run_folder=run_folder,
        trust=trust,
        networks=network or [],
        batches=batch or [],
        threads=threads,
        device=device,
        precision=precision,
        quick=quick,
        json=json,
        plot=plot,
    )


@app.command("architectures")
def architectures(
    network: Annotated[
        list[str] | None, typer.Option("--network", help="One of `lthfunc archs`; repeatable. \\[default: all]")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", parser=whole, metavar="N", help="Examples a step.")] = 8,
    density: Annotated[float, typer.Option("--density", parser=number, metavar="X", help="Of the masks.")] = 0.1,
    threads: Threads = 1,
    quick: Annotated[bool, typer.Option("--quick", help="LeNet-300-100 alone; ends in under a minute.")] = False,
    json: JsonFile = None,
) -> None:
    """Every architecture on every engine: seconds to compile, and steps per second in turns."""
    from lthfunc_benchmarks.architectures import run

    run(networks=network or [], batch=batch, density=density, threads=threads, quick=quick, json=json)


@app.command("checkpoints")
def checkpoints(
    network: Annotated[
        list[str] | None, typer.Option("--network", help="Repeatable. \\[default: lenet300 and resnet18]")
    ] = None,
    engine: Annotated[str, typer.Option("--engine", help="eager or compile.")] = "eager",
    seconds: Annotated[
        float, typer.Option("--seconds", parser=number, metavar="X", help="Length of each training.")
    ] = 65.0,
    repeats: Annotated[int, typer.Option("--repeats", parser=whole, metavar="N", help="Trainings of each kind.")] = 3,
    threads: Threads = 1,
    device: Device = "cpu",
    quick: Annotated[bool, typer.Option("--quick", help="LeNet-300-100 alone; ends in under a minute.")] = False,
    json: JsonFile = None,
) -> None:
    """What checkpoints at the default interval cost a training, and how long they stop its steps."""
    from lthfunc_benchmarks.checkpoints import run

    run(
        networks=network or [],
        engine=engine,
        seconds=seconds,
        repeats=repeats,
        threads=threads,
        device=device,
        quick=quick,
        json=json,
    )


@app.command("memory")
def memory(
    rounds: Annotated[int, typer.Option("--rounds", parser=whole, metavar="N", help="How often to prune.")] = 1000,
    json: JsonFile = None,
) -> None:
    """Resident memory over many rounds of a tiny network."""
    from lthfunc_benchmarks.memory import run

    run(rounds=rounds, json=json)


@app.command("scale")
def scale(
    network: Annotated[
        list[str] | None, typer.Option("--network", help="Repeatable. \\[default: lenet300 and resnet20]")
    ] = None,
    ranks: Annotated[
        list[int] | None,
        typer.Option("--ranks", parser=whole, metavar="N", help="Repeatable. \\[default: 1, 2 and 4]"),
    ] = None,
    density: Annotated[
        list[float] | None,
        typer.Option("--density", parser=number, metavar="X", help="Repeatable. \\[default: 1 and 0.1]"),
    ] = None,
    rate: Annotated[
        list[float] | None,
        typer.Option(
            "--rate",
            parser=number,
            metavar="MBIT",
            help="Also over links of so many megabits a second (Linux, as root); repeatable.",
        ),
    ] = None,
    engine: Annotated[str, typer.Option("--engine", help="eager or compile.")] = "compile",
    quick: Annotated[bool, typer.Option("--quick", help="LeNet-300-100 on two ranks; ends in under a minute.")] = False,
    json: JsonFile = None,
) -> None:
    """One training on several ranks: a step's time and traffic, measured beside what a model of them says."""
    from lthfunc_benchmarks.scale import run

    run(
        networks=network or [],
        ranks=ranks or [],
        densities=density or [],
        rates=rate or [],
        engine=engine,
        quick=quick,
        json=json,
    )
