"""The names the whole library speaks in."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

#: Trees keyed by a module's dotted parameter names, in module order.
Params = dict[str, Tensor]
Buffers = dict[str, Tensor]
#: bool, one per prunable leaf, the shape of the leaf; True = the weight remains.
Masks = dict[str, Tensor]
#: A batch: inputs (n, ...) and targets (n, ...).
Batch = tuple[Tensor, Tensor]


class TrainState(NamedTuple):
    """Everything training changes, as one pytree.

    Invariant: ``params * masks == params`` for every masked leaf.

    params: float leaves; buffers: the module's buffers (BatchNorm statistics among them);
    masks: bool leaves, only for prunable parameters; opt: the optimiser's state, or ``()`` before the
    first step (a fresh one is then made); step: int64 scalar, the number of steps taken.
    """

    params: Params
    buffers: Buffers
    masks: Masks
    opt: Any
    step: Tensor


class Ticket(NamedTuple):
    """A subnetwork to train: the params it starts from (initial or rewound, already masked) and its masks."""

    params: Params
    buffers: Buffers
    masks: Masks

    def to_state(self, step: int = 0) -> TrainState:
        """A state to train from, at a step: 0, or the one that it was rewound to; with no optimiser state yet."""
        device = next((leaf.device for leaf in self.params.values()), None)
        return TrainState(self.params, self.buffers, self.masks, (), torch.tensor(step, device=device))


class Split(NamedTuple):
    """Part of a data set: inputs x (n, ...) and integer targets y (n, ...), as they are stored."""

    x: Tensor
    y: Tensor


class Scale(NamedTuple):
    """How stored inputs become a network's: ``(x / unit - mean) / std``, per channel.

    unit: what counts as 1 (255 for uint8 pixels). mean, std: one number per channel (the first axis of an input).
    """

    unit: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Dataset(NamedTuple):
    """A data set as tensors. `val` is held out of the training images, to choose by; `test` is read once.

    Inputs may be stored small (uint8) and are then scaled inside the step, by `scale`; without one they are
    taken as they are. mapped: the tensors lie in a file that is read where and when a step needs it. parts: what a
    network gets apart, where it takes several inputs. labels: the classes' names, where they have some.

    Targets y are class numbers (n,); the class of each token (n, length); or floats (n, outputs) to come close to.
    classes: how many outputs a network has for them.
    """

    name: str
    train: Split
    val: Split
    test: Split
    classes: int
    scale: Scale | None = None
    mapped: bool = False
    parts: tuple[Any, ...] = ()
    labels: tuple[str, ...] = ()

    def class_name(self, label: int) -> str:
        """What a class is called."""
        return self.labels[label] if self.labels else str(label)

    @property
    def tokens(self) -> bool:
        """Whether inputs are whole numbers that an embedding reads, characters say."""
        return self.scale is None and not self.train.x.is_floating_point() and not self.parts

    @property
    def inputs(self) -> str:
        """What `models.build` calls them."""
        return "text" if self.tokens else "numbers"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input, e.g. (channels, height, width)."""
        return tuple(self.train.x.shape[1:])
