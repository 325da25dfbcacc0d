"""From which network a network learns, besides the targets."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le

from lthfunc.catalog.networks import ALIASES, NETWORKS, ZOOS
from lthfunc.experiments.settings.setting import TRAINERS, TRAINING, setting


@dataclass(frozen=True)
class Teaching:
    """Settings of distillation."""

    teacher: str | None = setting(
        None, "Learn from this trained network as well: a run's folder (its dense network after training), a file of "
        "a run, or other weights as --weights takes them. A loss of your own that takes a context gets its outputs.",
        TRAINING, TRAINERS, path=True, follows_data=True,
        instead_of=("teacher_arch", "teacher_arch_option", "teacher_digest"),
    )  # fmt: skip
    teacher_arch: str | None = setting(
        None, "Network of the --teacher, as --arch takes it.",
        TRAINING, TRAINERS, default="that of the teacher's run, or --arch", own=True, follows_data=True,
        offers=(*NETWORKS.offers, *ALIASES, *ZOOS.offers),
    )  # fmt: skip
    teacher_arch_option: dict[str, str] = setting(
        {}, "Argument for the teacher's network, such as width=2; repeatable.",
        TRAINING, TRAINERS, "NAME=VALUE", follows_data=True,
    )  # fmt: skip
    teacher_digest: str | None = setting(
        None, "SHA-256 of the teacher's parameters and buffers, which a run holds it to.",
        TRAINING, (), default="what it is when the run starts", decided=True, told=False, follows_data=True,
    )  # fmt: skip
    distill_weight: Annotated[float, Ge(0), Le(1)] = setting(
        0.9,
        "With --teacher, weight of the divergence from its outputs; the loss has the remaining weight.",
        TRAINING,
        TRAINERS,
    )
    temperature: Annotated[float, Gt(0)] = setting(
        4.0, "With --teacher, what both networks' logits are divided by.", TRAINING, TRAINERS
    )
