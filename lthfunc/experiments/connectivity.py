"""Linear mode connectivity: whether trainings from one point that differ in their data order end in one valley.

Frankle et al. 2020: train to step k, then two copies with different orders to the end; along the line between the two
the error rises by a barrier, and where it doesn't, the network is stable to the order from step k on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.errors import UserError, invalid
from lthfunc.training.engines.vmapped import unstacked
from lthfunc.training.loop import take_steps
from lthfunc.training.losses import Loss, Metric, accuracy, cross_entropy
from lthfunc.training.steps import Metrics, make_eval_step
from lthfunc.training.trainer import Trainer, seeded_if_random
from lthfunc.trees.dataset_checks import check_scale
from lthfunc.trees.model import Model
from lthfunc.trees.ops import leaf_difference, scaled
from lthfunc.trees.rng import key
from lthfunc.trees.side_effects import side_effects_of
from lthfunc.trees.types import Buffers, Params, Scale, Split, TrainState

#: Examples evaluated at a time, at every point of a line.
_CHUNK = 500


class Line(NamedTuple):
    """Two networks and what lies between them. alphas: (points,), 0 = the first; error, loss: (points,)."""

    alphas: Tensor
    error: Tensor
    loss: Tensor

    @property
    def barrier(self) -> float:
        """Highest error on the line less the mean of its ends, in [0, 1] (their *error barrier height*)."""
        return float(self.error.max() - (self.error[0] + self.error[-1]) / 2)


class Instability(NamedTuple):
    """Of copies spawned at step `k`: the line between them on the test set."""

    k: int
    line: Line


def between(first: TrainState, second: TrainState, alpha: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Params and floating buffers a part of the way: (1 - α) · first + α · second."""

    def mixed(a: Tensor, b: Tensor) -> Tensor:
        return torch.lerp(a, b, alpha.to(a.dtype)) if a.is_floating_point() else a

    return (
        {name: mixed(leaf, second.params[name]) for name, leaf in first.params.items()},
        {name: mixed(leaf, second.buffers[name]) for name, leaf in first.buffers.items()},
    )


@public
def line(
    model: Model,
    first: TrainState,
    second: TrainState,
    split: Split,
    scale: Scale | None = None,
    points: int = 11,
    loss: Loss = cross_entropy,
    metric: Metric = accuracy,
) -> Line:
    """Error (1 - `metric`) and `loss` at evenly spaced points between two networks: one `vmap` over α."""
    if points < 3:
        raise invalid("points", points, "a whole number of at least 3")
    if scale is not None:
        check_scale(scale, tuple(split.x.shape[1:]))
    for part in ("params", "buffers"):
        differs = leaf_difference(getattr(first, part), getattr(second, part))
        if differs:
            raise UserError(f"line: first and second have other {part}: {differs}")
    step = make_eval_step(model, loss, metric=metric)
    alphas = torch.linspace(0, 1, points, dtype=torch.float64, device=first.step.device)
    params, buffers = torch.vmap(lambda alpha: between(first, second, alpha))(alphas)
    losses, hits, seen = torch.zeros_like(alphas), torch.zeros_like(alphas), 0
    side_effects = side_effects_of(model, scaled(split.x[:2], scale))
    with torch.no_grad(), seeded_if_random(side_effects, alphas.device):
        for start in range(0, len(split.x), _CHUNK):
            x = scaled(split.x[start : start + _CHUNK].to(alphas.device), scale)
            y = split.y[start : start + _CHUNK].to(alphas.device)
            metrics = _at_each(lambda p, b, x=x, y=y: step(p, b, (x, y.clone())), params, buffers)  # type: ignore[misc]
            losses += metrics["loss"].double() * len(x)
            hits += metrics["accuracy"] * len(x)
            seen += len(x)
    return Line(alphas.cpu(), (1 - hits / seen).cpu(), (losses / seen).cpu())


def _at_each(step: Callable[[Params, Buffers], Metrics], params: Params, buffers: Buffers) -> Metrics:
    """The metrics of networks stacked along a first dimension: under vmap, or in turn where something in one can't."""
    try:
        return torch.vmap(step, randomness="different")(params, buffers)
    except RuntimeError:
        found = [step(*each) for each in unstacked((params, buffers), len(next(iter(params.values()))))]
        return {name: torch.stack([each[name] for each in found]) for name in found[0]}


@public
def instability(
    model: Model, trainer: Trainer, start: TrainState, ks: Sequence[int], *, steps: int, seed: int, points: int = 11
) -> list[Instability]:
    """The barrier for each k: one training to the k's in turn, and from each two copies to step `steps`.

    The copies see orders of their own, the same two for every k. Raises UserError where a k lies outside the training.
    """
    for k in ks:
        if not int(start.step) <= k < steps:
            raise invalid("--at", k, f"a step from {int(start.step)} to {steps - 1}")
    found, state = [], start
    for k in sorted(ks):
        if k > int(state.step):
            state, _ = take_steps(trainer, state, seed=seed, until=k)
        first, second = (
            take_steps(trainer, state, seed=key(seed, "instability", copy) % 2**31, until=steps)[0] for copy in range(2)
        )
        data = trainer.data
        between_them = line(model, first, second, data.test, data.scale, points, trainer.loss, trainer.metric)
        found.append(Instability(k, between_them))
    return found
