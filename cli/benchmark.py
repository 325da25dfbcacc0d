"""``lthfunc benchmark``: the measurements of this library, on one's own machine."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import number, whole

app = typer.Typer(help="Measure this library, its peers and the floors on this machine.", no_args_is_help=True)


@app.command("training")
def training(
    network: Annotated[
        list[str] | None,
        typer.Option("--network", help="lenet300, lenet5, lenet5-wide, conv4, resnet20 (these by default), resnet18."),
    ] = None,
    threads: Annotated[int, typer.Option("--threads", parser=whole, metavar="N", help="CPU threads.")] = 1,
    density: Annotated[float, typer.Option("--density", parser=number, metavar="X", help="Of the masks.")] = 0.2,
    precision: Annotated[str, typer.Option("--precision", help="Of our engines: fp32, tf32 or bf16.")] = "fp32",
    device: Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N.")] = "cpu",
    quick: Annotated[bool, typer.Option("--quick", help="LeNet-300-100 alone; ends in under a minute.")] = False,
    json: Annotated[str | None, typer.Option("--json", metavar="FILE", help="Write the records here.")] = None,
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


@app.command("sparse")
def sparse(
    network: Annotated[
        list[str] | None,
        typer.Option("--network", help="lenet300, lenet5, conv4, resnet20 (these by default), resnet18, lenet5-wide."),
    ] = None,
    threads: Annotated[int, typer.Option("--threads", parser=whole, metavar="N", help="CPU threads.")] = 1,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N.")] = "cpu",
    ticket: Annotated[
        str | None, typer.Option("--ticket", metavar="FILE", help="Also measure this ticket of the one --network.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="LeNet-300-100 at three densities; ends in under a minute.")
    ] = False,
    json: Annotated[str | None, typer.Option("--json", metavar="FILE", help="Write the records here.")] = None,
    plot: Annotated[str | None, typer.Option("--plot", metavar="FILE", help="Draw speed against density here.")] = None,
) -> None:
    """Training and inference on surviving weights against density, side by side with dense engines and peers."""
    from lthfunc_benchmarks.sparse import run

    run(networks=network or [], threads=threads, device=device, ticket=ticket, quick=quick, json=json, plot=plot)
