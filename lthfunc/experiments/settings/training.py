"""How networks are trained."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le

from lthfunc.catalog.training import AUGMENTATIONS, LOSSES, METRICS, OPTIMIZERS, SCHEDULES
from lthfunc.experiments.settings.setting import (
    FIRST,
    MOST_STEPS,
    TRAINERS,
    TRAINING,
    Count,
    Part,
    Share,
    Steps,
    setting,
)


@dataclass(frozen=True)
class Training:
    """Settings of training; many are None, because the network and the data set have their own defaults."""

    epochs: Annotated[int, Ge(1), Le(1_000_000)] | None = setting(
        None, "Length of each training in epochs.",
        FIRST, (*TRAINERS, "branch", "transfer"), default="the data set's", follows_data=True, instead_of=("steps",),
    )  # fmt: skip
    steps: Steps | None = setting(
        None, "Length of each training in steps (batches).",
        TRAINING, (*TRAINERS, "branch", "transfer"), follows_data=True, instead_of=("epochs",),
    )  # fmt: skip
    batch_size: Annotated[int, Ge(1), Le(10_000_000)] | None = setting(
        None, "Examples per batch.", TRAINING, (*TRAINERS, "transfer"), default="the network's"
    )
    optimizer: str | None = setting(
        None, f"Optimiser: {OPTIMIZERS.described}; or module:function.",
        TRAINING, (*TRAINERS, "branch"), default="the network's", names=OPTIMIZERS, of_optimizer=True,
    )  # fmt: skip
    lr: Annotated[float, Gt(0)] | None = setting(
        None, "Learning rate.", TRAINING, (*TRAINERS, "branch", "transfer"), default="the network's", of_optimizer=True
    )
    lr_final: Annotated[float, Ge(0)] | None = setting(
        None, "Learning rate at the end of a decaying --schedule, and after it.",
        TRAINING, (*TRAINERS, "branch", "transfer"),
        default="the schedule's: 0, 4e-6 of --lr for one-cycle, 7 % of it for triangular",
    )  # fmt: skip
    momentum: Part | None = setting(None, "Momentum of sgd and muon.", TRAINING, TRAINERS, of_optimizer=True)
    nesterov: bool = setting(
        False, "Nesterov momentum.", TRAINING, ("prune", "train", "methods"), default="no", of_optimizer=True
    )
    weight_decay: Annotated[float, Ge(0)] | None = setting(None, "Weight decay.", TRAINING, TRAINERS, of_optimizer=True)
    no_decay: bool = setting(
        False, "No weight decay of biases and of normalisation layers.", TRAINING, TRAINERS, negated=False
    )
    clip_norm: Annotated[float, Gt(0)] | None = setting(
        None, "Scale a step's gradient down to this norm where its own is larger.", TRAINING, TRAINERS
    )
    accumulate: Count = setting(
        1,
        "Number of batches whose mean gradient makes a step: the step of a batch as many times as large, in the memory "
        "of one.",
        TRAINING, TRAINERS,
    )  # fmt: skip
    sam: Annotated[float, Gt(0)] | None = setting(
        None, "Radius of sharpness-aware minimisation, which takes two gradients per step; 0.05 is usual.",
        TRAINING, TRAINERS,
    )  # fmt: skip
    lookahead: Count | None = setting(
        None, "Steps after which lookahead's slow weights go half the way to the optimiser's; 5 is usual.",
        TRAINING, TRAINERS,
    )  # fmt: skip
    ema: Share | None = setting(
        None,
        "Decay of an exponential moving average of the weights, the network that is then evaluated, saved and pruned; "
        "0.999 averages over about 1,000 steps.",
        TRAINING, TRAINERS,
    )  # fmt: skip
    schedule: str = setting(
        "constant", f"Learning rate over a training: {SCHEDULES.described}; or module:function.",
        TRAINING, (*TRAINERS, "branch"), names=SCHEDULES,
    )  # fmt: skip
    milestone: tuple[Steps, ...] = setting(
        (), "With --schedule step, a step at which the learning rate drops to a tenth; repeatable.",
        TRAINING, ("prune", "train", "methods"), default="2/3 and 5/6 of the training",
        gives_way_to=("epochs", "steps", "schedule"),
    )  # fmt: skip
    cycles: Annotated[int, Ge(1), Le(1_000_000)] = setting(
        4, "With --schedule cyclic, number of cosine cycles in a training.",
        TRAINING, ("prune", "train", "methods", "branch"),
    )  # fmt: skip
    warmup: Annotated[int, Ge(0), Le(MOST_STEPS)] = setting(
        0, "Steps of linear learning-rate warm-up.", TRAINING, TRAINERS
    )
    augment: str | None = setting(
        None, "Random changes of training inputs, in their order, such as flip-crop,mixup: "
        f"{', '.join(AUGMENTATIONS.offers)}, or module:function.",
        TRAINING, TRAINERS, "NAMES", default="flip-crop for cifar10, cifar100 and tinyimagenet, else none",
        follows_data=True, names=AUGMENTATIONS, listed=True, former_values={True: "flip-crop", False: "none"},
    )  # fmt: skip
    loss: str = setting(
        "auto", f"Loss: {LOSSES.described}, or module:function; auto is {LOSSES.auto}.",
        TRAINING, TRAINERS, names=LOSSES, decided=True,
    )  # fmt: skip
    label_smoothing: Part = setting(
        0.0, "Fraction of each target that is spread evenly over all classes.", TRAINING, TRAINERS
    )
    metric: str = setting(
        "auto",
        f"Metric reported as accuracy: {METRICS.described}, or module:function; auto is {METRICS.auto}.",
        TRAINING, TRAINERS, names=METRICS, decided=True,
    )  # fmt: skip
    eval_every: Steps | None = setting(
        None, "Steps between two evaluations on the validation split.",
        TRAINING, ("prune", "train", "methods", "transfer"),
        default="5 to 25 evaluations in a training, about 5 % of its time", follows_data=True,
    )  # fmt: skip
