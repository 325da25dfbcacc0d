"""From settings to a plan: data, model, optimiser and functions, on a device."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from typing import NamedTuple, TypeVar, cast

import torch

from lthfunc.catalog.pruning import CONTROLS, STRUCTURES
from lthfunc.data.augment import shift_and_mirror
from lthfunc.data.data_warnings import without_data_warnings
from lthfunc.data.images import Observe
from lthfunc.data.loading import load
from lthfunc.deployment.compaction.compact import compact_training
from lthfunc.deployment.compaction.compact_engine import compact_engine
from lthfunc.distributed.collectives import SINGLE_RANK, Collectives
from lthfunc.distributed.data_parallel import rank_batch_size
from lthfunc.errors import UserError, invalid
from lthfunc.experiments.config import Config, trainings_at_once
from lthfunc.experiments.functions import (
    Scored,
    allocation_of,
    densities_of,
    rewinding_of,
    score_of,
    structure_of,
    tidying_of,
)
from lthfunc.experiments.iterative import Plan
from lthfunc.experiments.resolve import resolved
from lthfunc.experiments.rewinding_and_controls import start_of
from lthfunc.experiments.tasks import check_last_rate, loss_of_name, make_optimizer, metric_of_name, named_for
from lthfunc.experiments.trials import check_orientation, check_pruning, check_score, check_start
from lthfunc.hardware import usable_cores
from lthfunc.models.factory import build_for
from lthfunc.plugins import is_own
from lthfunc.sparse.cost_model import why_not_sparse
from lthfunc.sparse.kernels.build import why_no_kernels
from lthfunc.sparse.sparse_or_dense import always_sparse
from lthfunc.sparsify.allocation import check_patterns
from lthfunc.training.batches import steps_per_epoch
from lthfunc.training.cpu_threads import check_jobs, check_threads
from lthfunc.training.engines.interface import Work
from lthfunc.training.engines.table import Making, engine_for
from lthfunc.training.engines.toolchain import why_not
from lthfunc.training.precision import Precision, check_precision
from lthfunc.training.trainer import OnNonfinite, examples, make_trainer
from lthfunc.trees.flops import flops_of
from lthfunc.trees.model import Model, fixed_line, init, mismatched_line
from lthfunc.trees.ops import data_to_device
from lthfunc.trees.side_effects import side_effects_of
from lthfunc.trees.types import Dataset

T = TypeVar("T")

#: Looks at the validation split per training, unless --eval-every says otherwise: as many as cost this share of the
#: training (a step computes three times what a look does on as many examples), within limits.
_EVALUATION_SHARE, _FEWEST_LOOKS, _MOST_LOOKS = 0.05, 5, 25
#: FLOPs of a step from which a second thread is worth its waiting; below, one thread is quickest on a busy machine,
#: and seeds run side by side in processes. The LeNets lie below, convolutional networks above.
_FLOPS_FOR_THREADS = 1e9


class Prepared(NamedTuple):
    """config: resolved, with device, engine and threads decided. note: a line the user should see, or None."""

    config: Config
    plan: Plan
    note: str | None


def prepare(config: Config, observe: Observe | None = None, collectives: Collectives = SINGLE_RANK) -> Prepared:
    """Check everything that can be wrong, load the data, and build the plan. Raises UserError.

    observe: told how many images of how many are decoded. collectives: of the ranks that are to train together.
    """
    config = resolved(config)
    if config.executor == "local":  # elsewhere its nodes' cores count
        check_threads(config.threads)
    if collectives.world_size > 1:
        _check_ranks(config, collectives)
    config = replace(config, device=choose_device(config.device))
    if config.executor == "local" and config.device == "cpu":  # a GPU's memory is asked about later
        check_jobs(config.jobs)
    if config.energy and config.device == "cpu":  # a meter cannot tell processes apart
        config = replace(config, jobs=1)
    check_precision(config.precision, config.device)
    data = data_to_device(read_data(config, observe), config.device, _room(config.device))
    model = read_model(config, data)
    batch_size = _decided(config.batch_size)
    per_epoch = steps_per_epoch(len(data.train.x), batch_size)
    steps = config.steps if config.steps is not None else _decided(config.epochs) * per_epoch
    augment = shift_and_mirror if config.augment else None
    config = named_for(config, data)
    loss, metric = loss_of_name(config, data), metric_of_name(config, data)
    precision, side_effects = cast("Precision", config.precision), side_effects_of(model, examples(data))
    optimizer = make_optimizer(config, steps)
    work = Work(model, loss, optimizer, data.scale, augment, precision, metric, collectives, side_effects)
    if work.optimizer.mixes and config.compact:
        raise UserError(
            f"--compact: cannot be with --optimizer {config.optimizer}, whose updates mix a layer's weights"
        )
    structure = STRUCTURES.find(config.structure)
    if structure is None or structure[0].rows:
        check_orientation(config.structure, model, config.exempt)
    config, note = _choose_engine(config, steps, work, data)
    if config.threads is None:
        config = replace(config, threads=_threads(config, work, data, batch_size))
    if config.augment and len(data.shape) != 3:
        raise UserError(f"--augment: works on images, not on inputs of shape {data.shape}")
    check_last_rate(config, steps)
    scoring = score_of(config.score)
    rewind, anchor_step = rewinding_of(config.rewind, per_epoch)
    plan = Plan(
        model=model,
        trainer=make_trainer(
            model,
            data,
            optimizer=work.optimizer,
            batch_size=batch_size,
            loss=loss,
            metric=metric,
            augment=augment,
            engine=_compacting(config, model, data) if config.compact else config.engine,
            precision=work.precision,
            on_nonfinite=cast("OnNonfinite", config.on_nonfinite),
            collectives=collectives,
        ),
        steps=steps,
        eval_every=config.eval_every or _eval_every(steps, batch_size, len(data.val.x)),
        rounds=config.rounds,
        rate=config.rate,
        densities=densities_of(config),
        score=lambda trained, now: scoring(
            Scored(model, data, batch_size, _decided(config.lr), now.seed, now.number, trained, now.anchor, loss)
        ),
        allocate=allocation_of(config),
        select=structure_of(config, model),
        tidy=tidying_of(config.structure, model, data.shape),
        rewind=rewind,
        anchor_step=anchor_step,
        controls={name: start_of(CONTROLS, name) for name in config.control},
    )
    if anchor_step >= steps:
        raise invalid("--rewind", config.rewind, f"a point before the end of training (step {steps})")
    check_patterns("layer rate", config.layer_rate, model.prunable)
    if config.rounds and (config.structure != "unstructured" or config.min_layer_weights):
        check_pruning(plan)
    if config.rounds and config.score not in ("magnitude", "random"):
        start = init(model, 0, config.device)
        check_score(
            config.score, scoring, Scored(model, data, batch_size, _decided(config.lr), 0, 1, start, start, loss)
        )
    if config.rounds and is_own(config.rewind):
        check_start(plan)
    of_model = mismatched_line(model) if config.weights is not None else fixed_line(model)
    return Prepared(config, plan, "; ".join(filter(None, [note, of_model])) or None)


def _check_ranks(config: Config, collectives: Collectives) -> None:
    """Raise UserError for what one training on several ranks cannot be."""
    rank_batch_size(_decided(config.batch_size), collectives)
    if config.executor != "local":
        raise invalid("--executor", config.executor, "local on several ranks, which are one training's")
    if config.jobs is not None and config.jobs > 1:
        raise invalid("--jobs", config.jobs, "1 on several ranks, which take one training after the other")
    if config.energy:
        raise UserError("--energy: meters one process, not several ranks")
    if config.compact:
        raise UserError("--compact: cannot be on several ranks, which average gradients of the whole network")
    if config.engine.startswith("sparse"):
        raise invalid("--engine", config.engine, "auto, eager or compile on several ranks")
    if re.fullmatch(r"cuda:\d+", config.device):
        raise invalid("--device", config.device, "auto, cpu or cuda on several ranks, each of which takes its own GPU")
    mine, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count() if torch.cuda.is_available() else 0
    if config.device == "cuda" and mine >= gpus:
        raise UserError(f"--device: it takes GPU number {mine}, and there {'is' if gpus == 1 else 'are'} {gpus}")


def choose_device(name: str) -> str:
    """`auto` is the first GPU where there is one, else the CPU. Raises UserError for a device that is not there.

    A GPU that was named becomes the current one, which is what code means that names none.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    here = ["cpu", "cuda", *(f"cuda:{i}" for i in range(gpus))] if gpus else ["cpu"]
    if name == "auto":
        return "cuda" if gpus else "cpu"
    if name not in here:
        raise invalid("--device", name, f"one of {', '.join(['auto', *here])} on this machine")
    if name.startswith("cuda:"):
        torch.cuda.set_device(name)
    return name


def read_data(config: Config, observe: Observe | None = None) -> Dataset:
    """The data set of a configuration, without its hints, which are told by whoever reads it. Raises UserError."""
    with without_data_warnings():
        return load(
            config.dataset,
            config.data_dir,
            options=config.dataset_option,
            skip_broken=config.skip_broken,
            observe=observe,
        )


def read_model(config: Config, data: Dataset) -> Model:
    """The network of a configuration, for its data. Raises UserError."""
    return build_for(
        config.arch,
        data,
        config.arch_option,
        weights=config.weights,
        prune_only=config.prune_only,
        never_prune=config.never_prune,
        any_outputs=is_own(config.loss),
    )


def _decided(value: T | None) -> T:
    """A setting that `resolved` has filled in."""
    assert value is not None
    return value


def _compacting(config: Config, model: Model, data: Dataset) -> Making:
    """The engine on compacted networks. Raises UserError where this network cannot be compacted."""
    compact_training(model, init(model, 0), data.shape)
    # The sparse engine reads inputs by lists, so nothing is to be picked out for it.
    return compact_engine(config.engine, selecting=not config.engine.startswith("sparse"))


def _choose_engine(config: Config, steps: int, work: Work, data: Dataset) -> tuple[Config, str | None]:
    """`auto` by the whole run's steps and by what the network is made of.

    Raises UserError where an engine was asked for that cannot work here.
    """
    if config.engine.startswith("sparse"):
        reason = _why_not_sparse(config, work, data)
        if reason is not None:
            raise UserError(reason)
        return config, None
    if work.side_effects.global_rngs and config.engine == "auto":
        return replace(
            config, engine="eager"
        ), f"not compiled: {work.model.name} draws from {' and '.join(work.side_effects.global_rngs)}"
    trainings = (config.rounds + 1 + config.rounds * len(config.control)) * config.replicates
    wanted = engine_for(steps * trainings) if config.engine == "auto" else config.engine
    reason = why_not(config.device) if wanted == "compile" else None
    if reason is None:
        sparse = config.engine == "auto" and wanted == "compile" and work.collectives.world_size == 1
        if sparse and _why_not_sparse(config, work, data) is None:
            wanted = "sparse/compile"
        return replace(config, engine=wanted), None
    if config.engine == wanted:
        raise invalid("--engine", wanted, f"eager on this machine, since {reason}")
    note = f"not compiled: {reason}; running eagerly, which gives the same results more slowly"
    return replace(config, engine="eager"), note


def _why_not_sparse(config: Config, work: Work, data: Dataset) -> str | None:
    """One line that says why the sparse engine cannot run this; None where it can."""
    if config.device != "cpu":
        return str(invalid("--engine", config.engine, f"eager or compile with --device {config.device}"))
    if config.precision != "fp32":
        return str(invalid("--engine", config.engine, f"eager or compile with --precision {config.precision}"))
    return why_no_kernels() or why_not_sparse(work, data.shape, data.train.x.dtype)


def _threads(config: Config, work: Work, data: Dataset, batch_size: int) -> int:
    """CPU threads of a training.

    On the sparse engine, whose results don't depend on their number, the cores that seeds and controls leave over.
    Else one for a small network, all for a large one.
    """
    cores = min(torch.get_num_threads(), usable_cores())  # threads without a core would wait for each other
    if always_sparse(config.engine, work.model, data.shape):
        return max(1, cores // (config.jobs or trainings_at_once(config)))
    small = flops_per_step(work.model, data.shape, batch_size) < _FLOPS_FOR_THREADS
    return 1 if small else cores


def _eval_every(steps: int, batch_size: int, val: int) -> int:
    affordable = int(_EVALUATION_SHARE * 3 * steps * batch_size / val)
    return -(-steps // min(_MOST_LOOKS, max(_FEWEST_LOOKS, affordable)))


def flops_per_step(model: Model, shape: tuple[int, ...], batch_size: int) -> int:
    """FLOPs of a training step's products, counted on one example: a forward pass and two of its size backward."""
    return 3 * batch_size * flops_of(model.evaluating, shape, tokens=model.tokens)


def _room(device: str) -> int | None:
    """Bytes of the device's memory that a data set may take; what is larger is streamed."""
    return torch.cuda.mem_get_info(device)[0] // 2 if device.startswith("cuda") else None
