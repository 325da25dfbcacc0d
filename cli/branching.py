"""``lthfunc branch`` and ``lthfunc transfer``: experiments that start from a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lthfunc.errors import UserError

from . import options as o


@o.with_settings("branch")
def branch(
    run: Annotated[str, typer.Argument(help="The run's folder.")],
    from_round: Annotated[int, o.whole_number("--from-round", "The last round that both share.")],
    given: o.Given,
    trust: o.Trust = False,
    out: o.Out = None,
    layers: o.Layers = False,
    json: o.Json = False,
) -> None:
    """Continue from a round of a finished run with other settings, e.g. another rewinding, score or schedule.

    Rewinding: from which weights a pruned network is retrained; score: by what weights are kept. The run is not
    changed; the branch is a new run, with the shared rounds copied into it.
    """
    from .running import branch_run

    branch_run(Path(run), from_round, given, out, trust, shown=o.Shown(json, layers))


@o.with_settings("transfer")
def transfer(
    run: Annotated[str, typer.Argument(help="The run's folder.")],
    given: o.Given,
    trust: o.Trust = False,
    out: o.Out = None,
    layers: o.Layers = False,
    json: o.Json = False,
) -> None:
    """Train a run's tickets, i.e. their masks and initial weights, on another data set (Morcos et al. 2019).

    An output layer of another size is newly initialised, and dense.
    """
    if "dataset" not in given:
        raise UserError("--dataset: name the data set to train the tickets on")
    from .running import transfer_run

    transfer_run(Path(run), given, out, trust, shown=o.Shown(json, layers))
