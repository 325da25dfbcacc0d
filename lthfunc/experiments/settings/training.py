"""How networks are trained."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le

from lthfunc.catalog.training import LOSSES, METRICS, OPTIMIZERS, SCHEDULES
from lthfunc.experiments.settings.setting import MOST_STEPS, TRAINERS, TRAINING, Part, Setting, Steps


@dataclass(frozen=True)
class Training:
    """Settings of training; many are None, because the network and the data set have their own defaults."""

    epochs: Annotated[
        Annotated[int, Ge(1), Le(1_000_000)] | None,
        Setting(
            "Length of each training in epochs.",
            TRAINING, (*TRAINERS, "branch", "transfer"), default="the data set's",
            follows_data=True, instead_of=("steps",),
        ),
    ] = None  # fmt: skip
    steps: Annotated[
        Steps | None,
        Setting(
            "Length of each training in steps (batches).",
            TRAINING, (*TRAINERS, "branch", "transfer"),
            follows_data=True, instead_of=("epochs",),
        ),
    ] = None  # fmt: skip
    batch_size: Annotated[
        Annotated[int, Ge(1), Le(10_000_000)] | None,
        Setting("Examples per batch.", TRAINING, (*TRAINERS, "transfer"), default="the network's"),
    ] = None
    optimizer: Annotated[
        str | None,
        Setting(
            f"Optimiser: {OPTIMIZERS.described}; or package.module:function.",
            TRAINING, (*TRAINERS, "branch"), default="the network's", names=OPTIMIZERS, of_optimizer=True,
        ),
    ] = None  # fmt: skip
    lr: Annotated[
        Annotated[float, Gt(0)] | None,
        Setting(
            "Learning rate.",
            TRAINING, (*TRAINERS, "branch", "transfer"), default="the network's", of_optimizer=True,
        ),
    ] = None  # fmt: skip
    lr_final: Annotated[
        Annotated[float, Ge(0)] | None,
        Setting(
            "Learning rate at the end of a decaying --schedule, and after it.",
            TRAINING, (*TRAINERS, "branch", "transfer"),
            default="the schedule's: 0, 4e-6 of --lr for one-cycle, 7 % of it for triangular",
        ),
    ] = None  # fmt: skip
    momentum: Annotated[Part | None, Setting("Momentum of sgd and muon.", TRAINING, TRAINERS, of_optimizer=True)] = None
    nesterov: Annotated[
        bool, Setting("Nesterov momentum.", TRAINING, ("prune", "train", "methods"), default="no", of_optimizer=True)
    ] = False
    weight_decay: Annotated[
        Annotated[float, Ge(0)] | None, Setting("Weight decay.", TRAINING, TRAINERS, of_optimizer=True)
    ] = None
    schedule: Annotated[
        str,
        Setting(
            f"Learning rate over a training: {SCHEDULES.described}; or package.module:function.",
            TRAINING, (*TRAINERS, "branch"), names=SCHEDULES,
        ),
    ] = "constant"  # fmt: skip
    milestone: Annotated[
        tuple[Steps, ...],
        Setting(
            "With --schedule step, a step at which the learning rate drops to a tenth; repeatable.",
            TRAINING, ("prune", "train", "methods"), default="2/3 and 5/6 of the training",
            gives_way_to=("epochs", "steps", "schedule"),
        ),
    ] = ()  # fmt: skip
    cycles: Annotated[
        int, Ge(1), Le(1_000_000),
        Setting(
            "With --schedule cyclic, number of cosine cycles in a training.",
            TRAINING, ("prune", "train", "methods", "branch"),
        ),
    ] = 4  # fmt: skip
    warmup: Annotated[
        int, Ge(0), Le(MOST_STEPS),
        Setting("Steps of linear learning-rate warm-up.", TRAINING, TRAINERS),
    ] = 0  # fmt: skip
    augment: Annotated[
        bool | None,
        Setting(
            "Shift and flip training images at random.",
            TRAINING, TRAINERS, default="for cifar10 and cifar100", follows_data=True,
        ),
    ] = None  # fmt: skip
    loss: Annotated[
        str,
        Setting(
            f"Loss: {LOSSES.described}, or package.module:function; auto is {LOSSES.auto}.",
            TRAINING, TRAINERS, names=LOSSES, decided=True,
        ),
    ] = "auto"  # fmt: skip
    label_smoothing: Annotated[
        Part, Setting("Fraction of each target that is spread evenly over all classes.", TRAINING, TRAINERS)
    ] = 0.0  # fmt: skip
    metric: Annotated[
        str,
        Setting(
            f"Metric reported as accuracy: {METRICS.described}, or package.module:function; auto is "
            f"{METRICS.auto}.",
            TRAINING, TRAINERS, names=METRICS, decided=True,
        ),
    ] = "auto"  # fmt: skip
    eval_every: Annotated[
        Steps | None,
        Setting(
            "Steps between two evaluations on the validation split.",
            TRAINING, ("prune", "train", "methods", "transfer"),
            default="5 to 25 evaluations in a training, about 5 % of its time",
            follows_data=True,
        ),
    ] = None  # fmt: skip
