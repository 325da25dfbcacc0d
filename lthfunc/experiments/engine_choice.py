"""The choice of the engine and its threads."""

from __future__ import annotations

from dataclasses import replace

import torch

from lthfunc.deployment.compaction.compact import compact_training
from lthfunc.deployment.compaction.compact_engine import compact_engine
from lthfunc.errors import UserError, as_option, invalid
from lthfunc.experiments.config import OPTIONS, Config, Decision, filled, trainings_at_once, trainings_of
from lthfunc.hardware import has_bf16_products, usable_cores
from lthfunc.printable import counted, joined
from lthfunc.sparse.cost_model import why_not_sparse
from lthfunc.sparse.kernels.build import why_no_kernels
from lthfunc.sparse.python_losses import why_not_loss
from lthfunc.sparse.sparse_or_dense import always_sparse
from lthfunc.sparse.updates import pythons_parts
from lthfunc.training.engines.interface import Work
from lthfunc.training.engines.table import COMPILE_FROM_STEPS, Making, engine_for
from lthfunc.training.engines.toolchain import why_not
from lthfunc.training.loss_context import takes_context
from lthfunc.trees.flops import flops_of
from lthfunc.trees.model import Model, init
from lthfunc.trees.types import Dataset

#: FLOPs of a step from which a second thread pays off; below, one thread is fastest on a busy machine, and seeds run
#: in parallel processes. LeNets are below, convolutional networks above.
_FLOPS_FOR_THREADS = 1e9


def decide_engine(config: Config, steps: int, work: Work, data: Dataset) -> list[Decision]:
    """Decide what `auto` stands for, by the whole run's steps and the network's layers.

    Raises UserError if the requested engine cannot work here.
    """
    if config.engine.startswith("sparse"):
        _check_sparse(config, work, data)
        slower = _python_updates(config, work)
        return [] if slower is None else [Decision("engine", config.engine, slower, notable=True)]
    if config.engine == "compile" and (missing := why_not(config.device)) is not None:
        raise invalid("--engine", config.engine, f"eager on this machine, since {missing}")
    if config.engine != "auto":
        return []
    if work.side_effects.global_rngs:
        generators = " and ".join(work.side_effects.global_rngs)
        reason = f"not compiled: {work.model.name} draws from {generators}"
        return [Decision("engine", "eager", reason, notable=True)]
    total = steps * trainings_of(config)
    counted = f"all trainings take {total:,} steps, and compiling pays off from {COMPILE_FROM_STEPS:,}"
    if engine_for(total) == "eager":
        same = "what earlier runs compiled does not count, so that equal commands give equal bits"
        return [Decision("engine", "eager", f"{counted}; {same}")]
    missing, not_sparse = why_not(config.device), why_not_sparse_engine(config, work, data)
    if not_sparse is None:  # also without a compiler, where the installed package brings kernels
        dense = "compile" if missing is None else "eager"
        slower = _python_updates(config, work)
        reason = f"{counted}; each runs on the sparse engine where that costs less"
        if takes_context(work.loss):
            reason += ", with a loss that is Python's" + (", the teacher included" if config.teacher else "")
        shown = reason if slower is None else f"{reason}; {slower}"
        return [Decision("engine", f"sparse/{dense}", shown, notable=slower is not None)]
    if missing is not None:
        reason = f"not compiled: {missing}; running eagerly, which gives the same results more slowly"
        return [Decision("engine", "eager", reason, notable=True)]
    return [Decision("engine", "compile", f"{counted}; {not_sparse}")]


def decide_threads(config: Config, work: Work, data: Dataset) -> list[Decision]:
    """CPU threads of a training.

    On the sparse engine, whose results don't depend on their number, the cores that seeds and controls leave.
    Otherwise one for a small network, all for a large one.
    """
    if config.threads is not None:
        return []
    cores = min(torch.get_num_threads(), usable_cores())  # threads without a core would wait for each other
    if always_sparse(config.engine, work, data.shape):
        at_once = config.jobs or trainings_at_once(config)
        reason = (
            f"{counted(at_once, 'training')} at once on {counted(cores, 'core')}; any number gives the same results"
        )
        return [Decision("threads", max(1, cores // at_once), reason)]
    flops = flops_per_step(work.model, data.shape, filled(config.batch_size))
    small = flops < _FLOPS_FOR_THREADS
    size = f"a step takes {flops / 1e9:.2g} GFLOPs, and several threads pay off from {_FLOPS_FOR_THREADS / 1e9:g}"
    return [Decision("threads", 1 if small else cores, size)]


def flops_per_step(model: Model, shape: tuple[int, ...], batch_size: int) -> int:
    """FLOPs of a training step's products, counted on one example: a forward pass, and twice as much backward."""
    return 3 * batch_size * flops_of(model.evaluating, shape, tokens=model.tokens)


def engine_of(config: Config, model: Model, data: Dataset) -> Making:
    """The engine, on compacted networks with --compact. Raises UserError if it cannot work."""
    if not config.compact:
        return config.engine
    compact_training(model, init(model, 0), data.shape)
    # The sparse engine reads inputs by lists, so inputs needn't be selected for it.
    return compact_engine(config.engine, selecting=not config.engine.startswith("sparse"))


def why_not_sparse_engine(config: Config, work: Work, data: Dataset) -> str | None:
    """Why `auto` leaves the sparse engine out; None where it may be used."""
    if work.collectives.world_size > 1:
        return "the sparse engine doesn't support several ranks"
    if config.precision == "bf16" and has_bf16_products():
        return "not sparse: the rule for that is one of float32's times, and this processor multiplies bfloat16 numbers"
    try:
        _check_sparse(replace(config, engine="sparse"), work, data)
    except UserError as error:
        return f"not sparse: {as_option(str(error), OPTIONS)}"
    return None


def _python_updates(config: Config, work: Work) -> str | None:
    """Why Python updates the weights that the sparse engine trains; None where the machine does."""
    names = [name or f"--optimizer {config.optimizer}" for name in pythons_parts(work.optimizer)]
    if not names:
        return None
    what = joined(names, "and")
    return (
        f"the sparse engine has no instructions for {what}, so Python updates the weights in each step, which is "
        "slower at low densities"
    )


def _check_sparse(config: Config, work: Work, data: Dataset) -> None:
    """Raise UserError if the sparse engine cannot run this."""
    if config.device != "cpu":
        raise invalid("--engine", config.engine, f"eager or compile with --device {config.device}")
    reason = why_no_kernels() or why_not_sparse(work, data.shape, data.train.x.dtype) or why_not_loss(work, data.train)
    if reason is not None:
        raise UserError(reason)
