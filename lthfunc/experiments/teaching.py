"""The teacher of a configuration: a trained network by its weights, and the loss by which another learns from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from lthfunc.errors import UserError, as_option, invalid
from lthfunc.experiments.config import SETTINGS, Config, Decision
from lthfunc.models.factory import build_for
from lthfunc.models.pretrained import check_weights
from lthfunc.plugins import is_own
from lthfunc.training.distillation import distillation
from lthfunc.training.loss_context import takes_context, with_context
from lthfunc.training.losses import Loss
from lthfunc.trees.convert import to_module
from lthfunc.trees.digests import digest_of
from lthfunc.trees.types import Dataset, Ticket


def check_teacher(config: Config) -> None:
    """Raise UserError for weights that aren't there, before anything is loaded."""
    if config.teacher is not None:
        with _about_teacher():
            check_weights(config.teacher_arch or config.arch, config.teacher)


def read_teacher(config: Config, data: Dataset) -> nn.Module | None:
    """The teacher, on the device of the training; None without one. Raises UserError where it doesn't fit the data."""
    if config.teacher is None:
        return None
    name, options = config.arch, config.arch_option
    if config.teacher_arch is not None:
        name, options = config.teacher_arch, config.teacher_arch_option
    with _about_teacher():
        model = build_for(name, data, options, weights=config.teacher, trained=True, any_outputs=is_own(config.loss))
    params, buffers = model.init(0)
    return to_module(Ticket(params, buffers, {}), model).to(config.device)


def decide_teacher(config: Config, teacher: nn.Module | None) -> list[Decision]:
    """Record which network teaches. Raises UserError where the run began with another one."""
    if teacher is None:
        return []
    digest = digest_of(list(teacher.state_dict().values()))
    if config.teacher_digest not in (None, digest):
        raise UserError(
            f"--teacher: {config.teacher!r} has changed since the run began (its values have the SHA-256 "
            f"{digest[:12]}…, and had {str(config.teacher_digest)[:12]}…)"
        )
    if config.teacher_digest is not None:
        return []
    return [Decision("teacher_digest", digest, "of the teacher's parameters and buffers")]


def taught(config: Config, loss: Loss, teacher: nn.Module | None, data: Dataset) -> Loss:
    """The loss of a network that has this teacher: its own, mixed with the divergence from the teacher's classes.

    A user's loss that takes a context gets the teacher in it instead. Raises UserError for targets that are numbers.
    """
    if teacher is None:
        return loss
    if is_own(config.loss) and takes_context(loss):
        for name in ("distill_weight", "temperature"):
            if getattr(config, name) != SETTINGS[name].value:
                raise UserError(
                    f"{SETTINGS[name].option}: means nothing to --loss {config.loss}, which takes a context"
                )
        return with_context(loss, teacher=teacher)
    if data.train.y.is_floating_point():
        raise invalid("--teacher", config.teacher, "a --loss of your own that takes a context, for targets of numbers")
    return distillation(teacher, weight=config.distill_weight, temperature=config.temperature, loss=loss)


#: What the network's and its weights' settings are for a teacher.
_TEACHERS = {"weights": "--teacher", "arch": "--teacher-arch", "arch_option": "--teacher-arch-option"}


@contextmanager
def _about_teacher() -> Iterator[None]:
    """Errors about a network and its weights, as those of the teacher's options."""
    try:
        yield
    except UserError as error:
        words = as_option(str(error), _TEACHERS)
        raise type(error)(words.replace("(expected a file", "(expected a run's folder, a file", 1)) from error
