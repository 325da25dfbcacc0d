"""The results of a training, finished or not, and the callbacks that receive them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, NamedTuple, TypeVar

from torch import Tensor

from lthfunc.trees.packed_trees import OnPlaces
from lthfunc.trees.types import Batch, Buffers, Growth, Masks, NewMasks, Params, SurvivorPruning, TrainState

S = TypeVar("S")
T = TypeVar("T")


class Point(NamedTuple):
    """A point of a learning curve. train_loss: the mean over the steps since the previous point (NaN at the first)."""

    step: int
    train_loss: float
    val_loss: float
    val_accuracy: float


class BestNetwork(NamedTuple):
    """The network at the early-stopping step, the one with the least validation loss."""

    point: Point
    params: Params
    buffers: Buffers


class SinceLastPoint(NamedTuple):
    """What happened since a curve's last point.

    loss: the sum of the steps' losses, in float64. steps: their number. random: the state of the generator that random
    layers draw from, uint8 (bytes,).
    """

    loss: float
    steps: int
    random: Tensor


class LayerChange(NamedTuple):
    """An update of a layer's mask. kept: weights that remain after it; dropped, grown: that it removed and added."""

    kept: int
    dropped: int
    grown: int


class MaskChange(NamedTuple):
    """An update of masks during a training, after a step. digest: the SHA-256 of all masks after it."""

    step: int
    layers: dict[str, LayerChange]
    digest: str

    @property
    def exchanged(self) -> int:
        """Weights that it removed or added."""
        return sum(each.dropped + each.grown for each in self.layers.values())


#: Gives the dense state of a network without optimiser state, which it makes when asked to.
DenseNetwork = Callable[[], TrainState]


class GradientGrowth(NamedTuple):
    """Weights of the largest gradients grow. An engine may take the gradients itself, up to rounding.

    scores: makes the magnitudes of the dense gradient; batch: the one on which, as the data set stores it.
    """

    scores: Callable[[], Params]
    batch: Callable[[], Batch]


#: (what grows, the share to drop), of `drop_and_grow`.
DropAndGrow = tuple[Params | Growth | GradientGrowth, float]
#: How masks change: by what is dropped and grown, the masks that follow, or a pruning of survivors.
Decided = DropAndGrow | NewMasks | SurvivorPruning
#: (network, its seed) -> how its masks change.
Deciding = Callable[[DenseNetwork, int], Decided]
#: The new masks, on what survives, and what changed in each layer.
Exchanged = tuple[dict[str, OnPlaces], dict[str, LayerChange]]


class Fit(NamedTuple):
    """A training: its state, the best network so far, and the learning curve.

    since: None right after the curve's last point, and at the end of a training. changes: of masks (`MaskUpdates`),
    after the last of which `best` is chosen; memory: masks that the next of them compares.
    """

    state: TrainState
    best: BestNetwork
    curve: tuple[Point, ...]
    since: SinceLastPoint | None = None
    changes: tuple[MaskChange, ...] = ()
    memory: tuple[Masks, ...] = ()


#: Called with the number of the step just taken and, after an evaluation, the new point of the curve.
Observer = Callable[[int, Point | None], None]
#: The same for several trainings at once: the new point of each.
Observers = Callable[[int, Sequence[Point] | None], None]


def as_observers(observe: Observer | None) -> Observers | None:
    """An observer of one training as one of several, which is called with the first's points."""
    if observe is None:
        return None
    return lambda step, points: observe(step, None if points is None else points[0])


@dataclass(frozen=True)
class Checkpointer(Generic[T]):
    """The callbacks that save unfinished trainings, so that they can resume to the same bits.

    save: called with the unfinished trainings, in the order of their states. should_stop: whether to stop after the
    current step. due: whether to save at this step, asked from time to time. next_check: step -> the next step at which
    to ask as well, or None. on_phase: called with what begins or continues at a step ("preparation" of the engine,
    "training" or "evaluation") once the device has finished what came before, for energy meters. packed: whether
    `save` also takes fits on survivors (`PackedFit`), which it then gets where the loop keeps survivors alone; dense
    trees are made otherwise.
    """

    save: Callable[[Sequence[T]], None]
    should_stop: Callable[[], bool] = lambda: False
    due: Callable[[int], bool] = lambda step: False
    next_check: Callable[[int], int | None] = lambda step: None
    on_phase: Callable[[str, int], None] = lambda phase, step: None
    packed: bool = False

    def of(self, wrap: Callable[[Sequence[S]], Sequence[T]]) -> Checkpointer[S]:
        """A checkpointer of parts of what this one keeps. wrap: the parts -> what this one keeps."""
        return replace(self, save=lambda parts: self.save(wrap(parts)))  # type: ignore[arg-type,return-value]


class Stopped(Exception):  # noqa: N818 (it is no error)
    """A training ended early because its checkpointer asked for it; it was saved."""
