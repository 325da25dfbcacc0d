"""Calls of a function wherever Ray finds cores or GPUs for them: for work that isn't a run's trainings.

Needs the extra `ray`; nothing here is imported without ``--on ray``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lthfunc.errors import UserError
from lthfunc.experiments.config import Config
from lthfunc.runs.environment import versions
from lthfunc.scheduling.ray import check_same, clustered
from lthfunc.tracebacks import first_line

#: How often a call is begun again whose worker was lost.
_TRIES = 3


def called(
    on: str, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], *, cores: int, gpus: float = 0.0
) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """(call, result) as they come. A local cluster, where no address is given, ends with this.

    Raises what a call raises, and UserError where it lost its worker again and again or no node has what it takes.
    """
    with clustered(on) as ray:
        held = ray.cluster_resources()
        if held.get("CPU", 0) < cores or held.get("GPU", 0) < gpus:
            raise UserError(
                f"--on: no node of {on} can have {cores} cores" + (f" and {gpus:g} of a GPU" if gpus else "")
            )
        remote = ray.remote(_call).options(num_cpus=cores, num_gpus=gpus, max_retries=_TRIES)
        under = {remote.remote(str(Path.cwd()), versions(), function, call): call for call in calls}
        while under:
            (done,), _ = ray.wait(list(under), num_returns=1)
            call = under.pop(done)
            try:
                yield call, ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, UserError) else error from None
            except ray.exceptions.RayError as error:
                raise UserError(f"--on: a worker was lost {_TRIES + 1} times ({first_line(error)})") from error


def resources_of(config: Config) -> dict[str, Any]:
    """What one training takes."""
    return {"cores": config.threads or 1, "gpus": config.gpu_share if config.device.startswith("cuda") else 0.0}


def _call(here: str, expected: dict[str, Any], function: Callable[..., Any], call: tuple[Any, ...]) -> Any:
    if Path(here).is_dir():
        os.chdir(here)
    check_same(expected, versions())
    return function(*call)
