"""Linear mode connectivity: whether trainings from one state that differ in their data order end in one valley.

Frankle et al. 2020: train to step k, then train two copies with different orders to the end. The error along the line
between the two rises by a barrier; where it doesn't, the network is stable to the order from step k on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.errors import UserError, invalid
from lthfunc.experiments.task_schedules import in_turn
from lthfunc.training.averaging import result_of
from lthfunc.training.engines.vmapped import unstacked
from lthfunc.training.evaluation import Evaluation, averaged, from_means
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


class LinearPath(NamedTuple):
    """Two networks and what lies between them. alphas: (points,), 0 = the first; error, loss: (points,).

    error: 1 - the metric, or the metric itself where less of it is better.
    """

    alphas: Tensor
    error: Tensor
    loss: Tensor

    @property
    def barrier(self) -> float:
        """Highest error on the line less the mean of its ends (their *error barrier height*)."""
        return float(self.error.max() - (self.error[0] + self.error[-1]) / 2)


class Instability(NamedTuple):
    """The line between two copies spawned at step `k`, on the test set."""

    k: int
    line: LinearPath


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
    lower_is_better: bool = False,
) -> LinearPath:
    """Error (1 - `metric`) and `loss` at evenly spaced points between two networks: one `vmap` over α.

    model: of both. first, second: the networks at α = 0 and α = 1. split: the examples to evaluate on. scale: how its
    inputs are scaled (``data.scale``); None: not at all. points: at least 3, both ends included. lower_is_better:
    whether the metric is an error itself, such as `perplexity`. Source: Frankle et al. 2020, section 2. Raises
    UserError where the networks have different leaves.

    >>> model = lf.from_module(nn.Linear(4, 2))
    >>> split = lf.Split(torch.randn(6, 4), torch.tensor([0, 1] * 3))
    >>> lf.line(model, lf.init(model, 0), lf.init(model, 1), split, points=3).alphas.tolist()
    [0.0, 0.5, 1.0]
    """
    if points < 3:
        raise invalid("points", points, "a whole number of at least 3")
    if scale is not None:
        check_scale(scale, tuple(split.x.shape[1:]))
    for part in ("params", "buffers"):
        differs = leaf_difference(getattr(first, part), getattr(second, part))
        if differs:
            raise UserError(f"line: first and second have different {part}: {differs}")
    step = make_eval_step(model, loss, metric=averaged(metric))
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
    means = [Evaluation(math.nan, value) for value in (hits / seen).tolist()]
    values = torch.tensor([each.accuracy for each in from_means(means, metric)], dtype=torch.float64)
    return LinearPath(alphas.cpu(), values if lower_is_better else 1 - values, (losses / seen).cpu())


def _at_each(step: Callable[[Params, Buffers], Metrics], params: Params, buffers: Buffers) -> Metrics:
    """The metrics of networks stacked along a first dimension: by vmap, or in turn where vmap doesn't support one."""
    try:
        return torch.vmap(step, randomness="different")(params, buffers)
    except RuntimeError:
        found = [step(*each) for each in unstacked((params, buffers), len(next(iter(params.values()))))]
        return {name: torch.stack([each[name] for each in found]) for name in found[0]}


class Segment(NamedTuple):
    """A training of the study. number: its k; variant: the trunk that leads to k, or a copy; order: the data's seed."""

    seed: int
    number: int
    variant: str
    start: TrainState
    until: int
    order: int

    @property
    def key(self) -> tuple[int, int, str]:
        """Identifies it within a run: seed, k and variant."""
        return self.seed, self.number, self.variant

    @property
    def description(self) -> str:
        """Its name in messages."""
        return f"seed {self.seed}, {self.variant} {'to' if self.variant == TRUNK else 'from'} step {self.number}"


#: The training that copies are spawned from, and the copies.
TRUNK, COPIES = "trunk", ("first-copy", "second-copy")
#: Finished segments, in the order in which they end.
Finished = Iterable[tuple[Segment, TrainState]]


def segments(
    start: TrainState, ks: Sequence[int], *, steps: int, seed: int
) -> Generator[list[Segment], list[tuple[Segment, TrainState]], None]:
    """The trainings of a study with one seed: yields those that can run at once, and receives their results."""
    points = sorted(set(ks))

    def trunk(state: TrainState, k: int) -> Segment:
        return Segment(seed, k, TRUNK, state, k, seed)

    state = start
    if points[0] > int(start.step):
        ((_, state),) = yield [trunk(start, points[0])]
    for place, k in enumerate(points):
        orders = [key(seed, "instability", copy) % 2**31 for copy in range(2)]
        tasks = [Segment(seed, k, name, state, steps, order) for name, order in zip(COPIES, orders, strict=True)]
        found = yield [*tasks, *(trunk(state, later) for later in points[place + 1 : place + 2])]
        state = next((each for task, each in found if task.variant == TRUNK), state)


def measured(
    model: Model, trainer: Trainer, finished: Finished, points: int, *, lower_is_better: bool = False
) -> Iterator[tuple[int, Instability]]:
    """(seed, the line between two copies), as soon as both copies have ended."""
    waiting: dict[tuple[int, int], tuple[Segment, TrainState]] = {}
    data = trainer.data
    for task, state in finished:
        if task.variant == TRUNK:
            continue
        other = waiting.pop(task.key[:2], None)
        if other is None:
            waiting[task.key[:2]] = (task, state)
            continue
        first, second = (state, other[1]) if task.variant == COPIES[0] else (other[1], state)
        loss, metric = trainer.work.loss, trainer.work.metric
        ends = result_of(first), result_of(second)
        between_them = line(model, *ends, data.test, data.scale, points, loss, metric, lower_is_better)
        yield task.seed, Instability(task.number, between_them)


def check_points(ks: Sequence[int], start: int, steps: int) -> None:
    """Raise UserError where copies would be spawned outside of a training."""
    for k in ks:
        if not start <= k < steps:
            raise invalid("--at", k, f"a step from {start} to {steps - 1}")


@public
def instability(
    model: Model,
    trainer: Trainer,
    start: TrainState,
    ks: Sequence[int],
    *,
    steps: int,
    seed: int,
    points: int = 11,
    lower_is_better: bool = False,
) -> list[Instability]:
    """Measure how unstable a training is to the order of the data from each step k on.

    One training runs through the steps `ks`; at each, two copies of its state continue to step `steps`, and the line
    between the two is evaluated on the test set. The copies see different orders of the data, the same two for every k.

    model: the trainer's network. trainer: trains them. start: the state that training starts from. seed: of all
    orders. points: points of each line, both ends included. lower_is_better: of the trainer's metric. Source:
    Frankle et al. 2020, section 2. Returns an `Instability` for each k, in ascending order; `line.barrier` is the
    paper's *instability*. Raises UserError where a k lies outside the training.

    >>> data = lf.data.from_tensors("tiny", (torch.randn(9, 4), [0, 1, 1] * 3), (torch.randn(2, 4), [0, 1]), val=3)
    >>> model = lf.from_module(nn.Linear(4, 2))
    >>> trainer = lf.make_trainer(model, data, optimizer=lf.adam(1e-3), batch_size=2)
    >>> [each.k for each in lf.instability(model, trainer, lf.init(model), [2, 0], steps=4, seed=1)]
    [0, 2]
    """
    check_points(ks, int(start.step), steps)

    def trained(task: Segment) -> tuple[Segment, TrainState]:
        return task, take_steps(trainer, task.start, seed=task.order, until=task.until)[0]

    finished = in_turn(segments(start, ks, steps=steps, seed=seed), trained)
    lines = measured(model, trainer, finished, points, lower_is_better=lower_is_better)
    found = {each.k: each for _, each in lines}
    return [found[k] for k in sorted(ks)]
