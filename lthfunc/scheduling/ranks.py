"""Trainings, one after the other, on several ranks of torchrun: rank 0 manages the experiment, the others help.

Rank 0 prunes, rewinds and writes every file; it sends each training, from its last checkpoint if there is one, to all
ranks, which take its steps together. So masks are the same everywhere, only rank 0 needs access to the run's folder,
and a run resumes with any number of ranks. Ranks are one job, started by one user, so they trust what they receive.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import zip_longest
from typing import Any, NamedTuple, TypeVar

import torch
from torch import distributed

from lthfunc.distributed.collectives import Collectives, collectives
from lthfunc.errors import LostRankError, UserError
from lthfunc.experiments.config import Config, parse_interval
from lthfunc.experiments.iterative import Plan, Progress, Round, Task
from lthfunc.experiments.plan import prepare
from lthfunc.experiments.trainings import train_together
from lthfunc.runs.environment import versions
from lthfunc.tracebacks import first_line
from lthfunc.training.results import Checkpointer, Stopped
from lthfunc.trees.digests import digest_of, short_digest
from lthfunc.trees.model import init
from lthfunc.trees.ops import tree_map

T = TypeVar("T")

#: How long ranks wait for a silent one, and for rank 0 to start.
_PATIENCE = timedelta(minutes=10)
#: What NCCL's watchdog does if a rank is gone: by default it ends the process, before it can print which training
#: was lost and how to resume it. 2: it only ends the collectives, and the next one raises an error.
_WATCHDOG = ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "2")
#: Words of the transports' errors.
_TRANSPORTS = ("gloo", "nccl")
#: Examples of the training split that ranks compare beforehand.
_COMPARED = 256


class _PlanOrder(NamedTuple):
    """What rank 0 is about to do, and what must be the same on the others. found: facts about its network and data."""

    config: Config
    command: list[str]
    about: dict[str, Any]
    found: dict[str, str]


class _TrainingOrder(NamedTuple):
    """A training for all ranks."""

    tasks: list[Task]
    so_far: list[Progress] | None


def join_ranks() -> Collectives:
    """Join the ranks. Raises UserError if they cannot reach each other."""
    if torch.cuda.is_available() and (mine := int(os.environ.get("LOCAL_RANK", "0"))) < torch.cuda.device_count():
        torch.cuda.set_device(mine)
    os.environ.setdefault(*_WATCHDOG)  # read when the group is created
    try:
        distributed.init_process_group(timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise UserError(f"torchrun: the ranks cannot reach each other at {where} ({first_line(error)})") from error
    return collectives()


def agree_on_plan(config: Config, plan: Plan) -> None:
    """Rank 0: have the others make the same plan. Raises UserError, before any step, if one can't."""
    _broadcast(_PlanOrder(config, sys.argv[1:], versions(), _fingerprint(config, plan)))
    problem = next((said for said in _gather(None) if said is not None), None)
    if problem is not None:
        raise UserError(problem)


def broadcast_training(collectives: Collectives, tasks: Sequence[Task], so_far: Sequence[Progress] | None) -> None:
    """Rank 0: have the others join this training."""
    if collectives.world_size > 1 and collectives.rank == 0:
        _broadcast(_at("cpu", _TrainingOrder(list(tasks), None if so_far is None else list(so_far))))


def release_ranks() -> None:
    """Rank 0: release the others."""
    _broadcast(None)


@contextmanager
def naming_lost_ranks(collectives: Collectives) -> Iterator[None]:
    """A context for a training on all ranks. Raises LostRankError if one of them is gone."""
    try:
        yield
    except RuntimeError as error:
        of_transport = any(name in str(error).lower() for name in _TRANSPORTS)
        if collectives.world_size > 1 and (of_transport or isinstance(error, distributed.DistError)):
            raise LostRankError(f"another rank is gone ({_reason(error)})") from error
        raise


def check_same_networks(collectives: Collectives, rounds: Sequence[Round]) -> None:
    """Raise UserError if ranks have different networks, e.g. because a layer depends on its rank's examples."""
    if collectives.world_size == 1:
        return
    mine = short_digest([(each.fit.state[:3], each.fit.best[1:]) for each in rounds])
    all_of_them = torch.zeros(collectives.world_size, dtype=torch.int64, device=rounds[0].fit.state.step.device)
    all_of_them[collectives.rank] = mine
    found = collectives.all_reduce(all_of_them).tolist()
    others = [rank for rank, value in enumerate(found) if value != found[0]]
    if others:
        raise UserError(
            f"ranks: {', '.join(map(str, others))} have another network than rank 0; a layer that depends on its "
            "rank's examples, or draws by itself, cannot be trained on several"
        )


def help_rank_0(stopping: Callable[[], bool]) -> None:
    """Every other rank: help rank 0 until released. Raises LostRankError, and UserError if it can't help."""
    group, plan = collectives(), None
    with naming_lost_ranks(group):
        while (order := _broadcast(None)) is not None:
            if isinstance(order, _PlanOrder):
                plan, problem = _same_plan(order, group)
                # Ranks agree on stopping wherever rank 0 pauses.
                pause = parse_interval(order.config.checkpoint_every).after
                problems = _gather(problem)
                if any(said is not None for said in problems):
                    plan = None
            else:
                assert plan is not None
                _help(plan, order, Checkpointer(lambda progress: None, stopping, next_check=pause))


def _help(plan: Plan, order: _TrainingOrder, checkpointer: Checkpointer[Progress]) -> None:
    device = f"cuda:{torch.cuda.current_device()}" if plan.trainer.data.train.y.is_cuda else "cpu"
    tasks, so_far = _at(device, order)
    try:
        rounds = train_together(plan, tasks, checkpointer=checkpointer, so_far=so_far)
        check_same_networks(plan.trainer.work.collectives, rounds)
    except (UserError, Stopped):
        return  # rank 0 has the same error, and reports it


def _same_plan(order: _PlanOrder, collectives: Collectives) -> tuple[Plan | None, str | None]:
    """(the same plan, None), or (None, what differs here)."""
    who = f"rank {collectives.rank}"
    about = versions()
    for name, value in order.about.items():
        if about[name] != value:
            return None, f"{who} has {name} {about[name]}, and rank 0 has {value}"
    for theirs, here in zip_longest(order.command, sys.argv[1:], fillvalue="nothing"):
        if here != theirs:
            return None, f"{who} was started with {here!r} where rank 0 has {theirs!r}"
    try:
        plan = prepare(order.config, collectives=collectives).plan
    except UserError as error:
        return None, f"{who}: {error}"
    for name, value in _fingerprint(order.config, plan).items():
        if order.found[name] != value:
            return None, f"{who} finds {name} that differs from rank 0's"
    if order.config.threads is not None:
        torch.set_num_threads(order.config.threads)
    return plan, None


def _fingerprint(config: Config, plan: Plan) -> dict[str, str]:
    data = plan.trainer.data
    first = [[split.x[:_COMPARED], split.y[:_COMPARED]] for split in (data.train, data.val, data.test)]
    sizes = str([data.examples, len(data.val.y), len(data.test.y)])
    return {
        f"data ({config.dataset})": digest_of(first) + sizes,
        f"a network ({config.arch})": digest_of(init(plan.model, config.seed)[:2]),
    }


def _reason(error: RuntimeError) -> str:
    """The message of a transport's error, without its source location and advice."""
    return re.sub(r"^\[[^\]]*\.cc:\d+\] ", "", first_line(error)).partition(". ")[0]


def _at(device: str, tree: T) -> T:
    """Move a tree to a device; not all of its leaves are tensors."""
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf, tree)


def _broadcast(value: Any) -> Any:
    """Send rank 0's value to every rank."""
    held = [value]
    with naming_lost_ranks(collectives()):
        distributed.broadcast_object_list(held, src=0, device=torch.device("cpu"))
    return held[0]


def _gather(value: Any) -> list[Any]:
    """The values of all ranks, in their order."""
    said: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(said, value)
    return said
