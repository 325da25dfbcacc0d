"""From settings to a plan, in stages: device, data, model, objective, length, engine, threads, plan."""

from __future__ import annotations

from typing import NamedTuple, cast

from torch import nn

from lthfunc.catalog.methods import METHODS
from lthfunc.catalog.pruning import CONTROLS, STRUCTURES
from lthfunc.data.data_warnings import without_data_warnings
from lthfunc.data.images import Observe
from lthfunc.data.loading import load
from lthfunc.distributed.collectives import SINGLE_RANK, Collectives
from lthfunc.errors import UnfitInputsError, UserError, as_option, failing_as_options, invalid
from lthfunc.experiments.config import OPTIONS, SETTINGS, Config, Decision, applied, filled, first_round, to_mapping
from lthfunc.experiments.devices import data_room, decide_device
from lthfunc.experiments.engine_choice import decide_engine, decide_threads, engine_of
from lthfunc.experiments.functions import (
    ScoreContext,
    allocation_of,
    densities_of,
    method_of,
    rewinding_of,
    score_of,
    scoring_of,
    structure_of,
    tidying_of,
)
from lthfunc.experiments.iterative import Plan
from lthfunc.experiments.objective import (
    augmentation_of,
    check_last_rate,
    decide_objective,
    loss_of_name,
    make_optimizer,
    metric_of_name,
    schedule_of,
)
from lthfunc.experiments.rewinding_and_controls import start_of
from lthfunc.experiments.teaching import check_teacher, decide_teacher, read_teacher, taught
from lthfunc.experiments.trials import check_growth, check_orientation, check_pruning, check_score, check_start
from lthfunc.experiments.trust import code_in
from lthfunc.models.factory import build_for
from lthfunc.models.pretrained import check_weights
from lthfunc.plugins import is_own, load_plugin
from lthfunc.printable import counted
from lthfunc.training.batches import steps_per_epoch
from lthfunc.training.engines.interface import Work
from lthfunc.training.precision import Precision
from lthfunc.training.trainer import OnNonfinite, examples, trainer_of
from lthfunc.trees.model import Model, fixed_line, init
from lthfunc.trees.ops import data_to_device
from lthfunc.trees.patterns import check_patterns
from lthfunc.trees.side_effects import side_effects_of
from lthfunc.trees.types import Dataset

#: Evaluations per training, unless --eval-every is given: as many as take this share of the training (a step computes
#: three times as much as an evaluation of as many examples), within limits.
_EVALUATION_SHARE, _FEWEST_LOOKS, _MOST_LOOKS = 0.05, 5, 25


class PreparedPlan(NamedTuple):
    """config: resolved, with device, engine and threads decided. note: a line the user should see, or None.

    decisions: what each stage decided and why, in their order.
    """

    config: Config
    plan: Plan
    note: str | None
    decisions: tuple[Decision, ...] = ()


class Length(NamedTuple):
    """Steps of an epoch, of a training, and between two evaluations on the validation split."""

    per_epoch: int
    steps: int
    eval_every: int


@failing_as_options(OPTIONS)
def prepare(
    config: Config,
    observe: Observe | None = None,
    collectives: Collectives = SINGLE_RANK,
    like: PreparedPlan | None = None,
) -> PreparedPlan:
    """Check everything that can be wrong with a resolved configuration, load the data, and build the plan.

    observe: called with the number of decoded images and their total. collectives: of the ranks that train together.
    like: a plan of the same network on the same data and device, which the new one shares. Raises UserError.
    """
    _check_code_and_weights(config)
    decisions = decide_device(config, collectives)
    config = applied(config, decisions)
    if like is None:
        data = data_to_device(read_data(config, observe), config.device, data_room(config.device))
        model = read_model(config, data)
    else:
        data, model = like.plan.trainer.data, like.plan.model
    teacher = read_teacher(config, data)
    decisions += (of_teacher := decide_teacher(config, teacher))
    decisions += (of_objective := decide_objective(config, data))
    config = applied(config, [*of_teacher, *of_objective])
    length, of_length = decide_length(config, data)
    decisions += of_length
    work = _work(config, model, teacher, data, length, collectives)
    decisions += (of_engine := decide_engine(config, length.steps, work, data))
    config = applied(config, of_engine)
    decisions += (of_threads := decide_threads(config, work, data))
    config = applied(config, of_threads)
    plan = _plan(config, work, data, length)
    _check_plan(config, plan)
    notes = [each.reason for each in decisions if each.notable]
    of_model = as_option(model.note, OPTIONS) if config.weights is not None else fixed_line(model)
    return PreparedPlan(config, plan, "; ".join(filter(None, [*notes, of_model])) or None, tuple(decisions))


def _check_code_and_weights(config: Config) -> None:
    """Raise UserError for a user's function or file of weights that is missing, before any data are downloaded."""
    for name, named in code_in(to_mapping(config)).items():
        for each in named if name in SETTINGS and SETTINGS[name].own else ():
            load_plugin(SETTINGS[name].option, each)
    if config.weights is not None:
        check_weights(config.arch, config.weights)
    check_teacher(config)


def read_data(config: Config, observe: Observe | None = None) -> Dataset:
    """The data set of a configuration, without warnings, which are reported elsewhere. Raises UserError."""
    with without_data_warnings():
        return load(
            config.dataset,
            config.data_dir,
            options=config.dataset_option,
            skip_broken=config.skip_broken,
            tokenizer=config.tokenizer,
            observe=observe,
        )


def read_model(config: Config, data: Dataset) -> Model:
    """The network of a configuration, for its data. Raises UserError."""
    try:
        return build_for(
            config.arch,
            data,
            config.arch_option,
            weights=config.weights,
            trained=config.from_trained,
            prune_only=config.prune_only,
            never_prune=config.never_prune,
            any_outputs=is_own(config.loss),
        )
    except UnfitInputsError as error:
        default = ", the default" if config.dataset == SETTINGS["dataset"].value else ""
        raise UserError(f"{error}; these inputs are of --dataset {config.dataset}{default}") from error


def decide_length(config: Config, data: Dataset) -> tuple[Length, list[Decision]]:
    """Decide the length of a training, and how often it is evaluated."""
    part, decisions = filled(config.batch_size), list[Decision]()
    most = data.examples // part
    if most and config.accumulate > most:
        at_most = f"a whole number from 1 to {most}, the batches of {part} in {data.examples:,} training examples"
        raise invalid("--accumulate", config.accumulate, at_most)
    batch_size = part * config.accumulate
    per_epoch = steps_per_epoch(data.examples, batch_size)
    steps = config.steps
    if steps is None:
        epochs, each = filled(config.epochs), f", each of {config.accumulate} batches" if config.accumulate > 1 else ""
        steps = epochs * per_epoch
        decisions.append(Decision("steps", steps, f"{counted(epochs, 'epoch')} of {counted(per_epoch, 'step')}{each}"))
    every = config.eval_every
    if every is None:
        every = _eval_every(steps, batch_size, len(data.val.x))
        share = f"evaluations take about {100 * _EVALUATION_SHARE:g} % of a training"
        decisions.append(Decision("eval_every", every, f"{share}, and are {_FEWEST_LOOKS} to {_MOST_LOOKS} in number"))
    return Length(per_epoch, steps, every), decisions


def _work(
    config: Config, model: Model, teacher: nn.Module | None, data: Dataset, length: Length, collectives: Collectives
) -> Work:
    """What an engine runs. Raises UserError for settings that exclude each other."""
    loss, metric = taught(config, loss_of_name(config, data), teacher, data), metric_of_name(config, data)
    precision, side_effects = cast("Precision", config.precision), side_effects_of(model, examples(data))
    optimizer, augment = make_optimizer(config, length.steps), augmentation_of(config, data)
    if optimizer.mixes and config.compact:
        raise UserError(
            f"--compact: does not work with --optimizer {config.optimizer}, whose updates mix the weights of a layer"
        )
    structure = STRUCTURES.find(config.structure)
    if structure is None or structure[0].rows:
        check_orientation(config.structure, model, config.exempt)
    return Work(model, loss, optimizer, data.scale, augment, precision, metric, collectives, side_effects)


def _plan(config: Config, work: Work, data: Dataset, length: Length) -> Plan:
    """The experiment, once all settings are decided. Raises UserError."""
    check_last_rate(config, length.steps)
    rewind, anchor_step = rewinding_of(filled(config.rewind), length.per_epoch, length.steps)
    model, on_nonfinite = work.model, cast("OnNonfinite", config.on_nonfinite)
    plan = Plan(
        model=model,
        trainer=trainer_of(work, data, filled(config.batch_size), engine_of(config, model, data), on_nonfinite),
        steps=length.steps,
        eval_every=length.eval_every,
        rounds=filled(config.rounds),
        rate=config.rate,
        densities=densities_of(config),
        score=scoring_of(config, work, data),
        allocate=allocation_of(config),
        select=structure_of(config, model, data.shape),
        tidy=tidying_of(config.structure, model, data.shape),
        rewind=rewind,
        anchor_step=anchor_step,
        controls={name: start_of(CONTROLS, name) for name in config.control},
        from_trained=config.from_trained,
        dense=first_round(config) == 0,
        at_init=METHODS[config.method].at_init if config.method in METHODS else first_round(config) == 1,
    )
    return method_of(config, plan, schedule_of(config, length.steps))


def _check_plan(config: Config, plan: Plan) -> None:
    """Raise UserError if a plan could not be run to its end."""
    if plan.anchor_step >= plan.steps:
        raise invalid("--rewind", config.rewind, f"a point before the end of training (step {plan.steps})")
    check_patterns("--layer-rate", config.layer_rate, plan.model.prunable)
    if config.rounds and (config.structure != "unstructured" or config.min_layer_weights):
        check_pruning(plan)
    score = filled(config.score)
    if config.rounds and score not in ("magnitude", "random"):
        trainer, start = plan.trainer, init(plan.model, 0, config.device)
        lr, loss = filled(config.lr), trainer.work.loss
        now = ScoreContext(plan.model, trainer.data, trainer.batch_size, lr, 0, 1, start, start, loss)
        check_score(score, score_of(score), now)
    if config.growth is not None and is_own(config.growth):
        check_growth(config.growth, plan, schedule_of(config, plan.steps))
    if config.rounds and is_own(filled(config.rewind)):
        check_start(plan)


def _eval_every(steps: int, batch_size: int, val: int) -> int:
    affordable = int(_EVALUATION_SHARE * 3 * steps * batch_size / val)
    return -(-steps // min(_MOST_LOOKS, max(_FEWEST_LOOKS, affordable)))
