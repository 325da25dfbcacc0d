"""``lthfunc branch`` and ``lthfunc transfer``: experiments that begin in a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lthfunc.errors import UserError

from . import options as o


def branch(
    run: Annotated[str, typer.Argument(help="The run's folder.")],
    from_round: Annotated[
        int, typer.Option("--from-round", parser=o.whole, metavar="N", help="The last round that both share.")
    ],
    rounds: o.Rounds = None,
    rate: o.Rate = None,
    score: o.ScoreName = None,
    allocate: o.Allocate = None,
    layer_rate: o.LayerRate = None,
    floor: o.Floor = None,
    structure: o.Structure = None,
    exempt: o.Exempt = None,
    rewind: o.RewindTo = None,
    epochs: o.Epochs = None,
    steps: o.Steps = None,
    optimizer: o.OptimizerName = None,
    lr: o.Lr = None,
    lr_final: o.LrFinal = None,
    schedule: o.ScheduleName = None,
    cycles: o.Cycles = None,
    engine: o.Engine = None,
    jobs: o.Jobs = None,
    threads: o.Threads = None,
    checkpoint_every: o.CheckpointEvery = None,
    on_nonfinite: o.OnNonfinite = None,
    trust: o.Trust = False,
    out: o.Out = None,
    json: o.Json = False,
) -> None:
    """Go on from a round of a finished run in another way: another rewinding, score, structure or schedule.

    The run stays as it is; the branch is a run of its own, with the rounds that both share copied into it.
    """
    given: dict[str, Any] = dict(locals())
    for name in ("run", "from_round", "trust", "out", "json"):
        del given[name]
    from .running import branch_run

    branch_run(Path(run), from_round, given, out, trust, wants_json=json)


def transfer(
    run: Annotated[str, typer.Argument(help="The run's folder.")],
    dataset: o.DataSet = None,
    dataset_option: o.DataSetOption = None,
    data_dir: o.DataDir = None,
    control: o.Control = None,
    epochs: o.Epochs = None,
    steps: o.Steps = None,
    batch_size: o.BatchSize = None,
    lr: o.Lr = None,
    lr_final: o.LrFinal = None,
    eval_every: o.EvalEvery = None,
    engine: o.Engine = None,
    threads: o.Threads = None,
    checkpoint_every: o.CheckpointEvery = None,
    on_nonfinite: o.OnNonfinite = None,
    trust: o.Trust = False,
    out: o.Out = None,
    json: o.Json = False,
) -> None:
    """Train a run's tickets, masks and initial weights, on another data set (Morcos et al. 2019).

    An output layer of another size is drawn anew, dense.
    """
    if dataset is None:
        raise UserError("--dataset: name the data set to train the tickets on")
    given: dict[str, Any] = dict(locals())
    for name in ("run", "trust", "out", "json"):
        del given[name]
    from .running import transfer_run

    transfer_run(Path(run), given, out, trust, wants_json=json)
