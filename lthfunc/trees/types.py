"""The types that the whole library shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lthfunc.printable import counted, dtype_and_shape
from lthfunc.trees.streams import Stream

#: Trees keyed by a module's dotted parameter names, in module order.
Params = dict[str, Tensor]
Buffers = dict[str, Tensor]
#: bool, one per prunable leaf, the shape of the leaf; True = the weight remains.
Masks = dict[str, Tensor]
#: Picks the weights of a layer that grow, by their places in the flattened weight: (name, places that are taken, as
#: int64 that rise, the layer's size, how many) -> as many other places, int64, rising.
Growth = Callable[[str, Tensor, int, int], Tensor]
#: The target of a pixel that has no class, as in PASCAL VOC: it counts in no loss and no metric.
IGNORED_PIXEL = 255
#: A batch: inputs (n, ...) and targets (n, ...).
Batch = tuple[Tensor, Tensor]


class TrainState(NamedTuple):
    """Everything that training changes, as one pytree. Invariant: ``params * masks == params`` for every masked leaf.

    params: float leaves; buffers: the module's buffers, such as BatchNorm statistics; masks: bool leaves, for prunable
    parameters only; opt: the optimiser's state, or ``()`` before the first step, which then makes a fresh one; step:
    int64 scalar, the number of steps taken.
    """

    params: Params
    buffers: Buffers
    masks: Masks
    opt: Any
    step: Tensor

    def __repr__(self) -> str:
        return _summary(self, self.params, self.masks, self.step)


class Ticket(NamedTuple):
    """A subnetwork to train: its masks, and the masked params (initial or rewound) that training starts from."""

    params: Params
    buffers: Buffers
    masks: Masks

    def __repr__(self) -> str:
        return _summary(self, self.params, self.masks)

    def to_state(self, step: int = 0) -> TrainState:
        """A state to train from at `step`: 0, or the step that it was rewound to. It has no optimiser state yet."""
        device = next((leaf.device for leaf in self.params.values()), None)
        return TrainState(self.params, self.buffers, self.masks, (), torch.tensor(step, device=device))


def _summary(tree: Any, params: Params, masks: Masks, step: Tensor | None = None) -> str:
    """A state in one line; field by field where its leaves have no values (in a trace) or are no tensors."""
    try:
        kept, total = (sum(map(size, masks.values())) for size in (lambda mask: int(mask.sum()), Tensor.numel))
        parts = [counted(sum(leaf.numel() for leaf in params.values()), "param")]
        parts.append(f"{kept:,} of {counted(total, 'weight')} remain")
        parts += [] if step is None else [f"step {step.tolist()}"]
    except Exception:
        parts = [f"{name}={getattr(tree, name)!r}" for name in tree._fields]
    return f"{type(tree).__name__}({', '.join(parts)})"


class NewMasks(NamedTuple):
    """Masks that follow others. stays: of which of their weights the values and moments go on; others begin at zero."""

    masks: Masks
    stays: Masks


class SurvivorPruning(NamedTuple):
    """A pruning that asks for survivors alone.

    remaining: (survivors of each masked leaf, a vector each in the order in which they lie there; these leaves' sizes,
    pruned weights counted) -> which survivors remain, bool of their shapes. then: what `drop_and_grow` does after it,
    if anything: (growth, the share to drop); of weights dropped and grown at once values and moments go on.
    """

    remaining: Callable[[Params, Mapping[str, int]], Masks]
    then: tuple[Params | Growth, float] | None = None


class Split(NamedTuple):
    """A part of a data set: inputs x (n, ...) and targets y (n, ...), as they are stored."""

    x: Tensor
    y: Tensor

    def __repr__(self) -> str:
        return f"Split(x: {dtype_and_shape(self.x)}, y: {dtype_and_shape(self.y)})"


class Scale(NamedTuple):
    """How stored inputs are normalised: ``(x / unit - mean) / std``, per channel.

    unit: what counts as 1 (255 for uint8 pixels). mean, std: one number per channel (dimension 0 of an input), or one
    for all.
    """

    unit: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Dataset(NamedTuple):
    """A data set as tensors. `val` is held out of the training examples, for model selection; `test` is read once.

    Inputs may be stored as uint8 and are then scaled inside the step, by `scale`; without one they are used as they
    are. Targets y are class numbers (n,), a class per token (n, length) or per pixel (n, height, width), or floats
    (n, outputs) for regression.
    classes: the number of outputs that a network needs. mapped: whether the tensors lie in a file that is read on
    demand. parts: the inputs, where a network takes several. labels: the names of the classes, if they have any.
    stream: where training examples are read while they are needed, what reads them; `train` then holds some of them.
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
    stream: Stream | None = None

    def class_name(self, label: int) -> str:
        """The name of a class."""
        return self.labels[label] if self.labels else str(label)

    @property
    def examples(self) -> int:
        """Training examples of an epoch."""
        return len(self.train.x) if self.stream is None else self.stream.examples

    @property
    def tokens(self) -> bool:
        """Whether inputs are whole numbers that an embedding reads, such as characters."""
        return self.scale is None and not self.train.x.is_floating_point() and not self.parts

    @property
    def pixels(self) -> bool:
        """Whether targets are a class for each pixel."""
        return self.train.y.ndim == 3 and not self.train.y.is_floating_point()

    @property
    def inputs(self) -> str:
        """What `models.build` calls the inputs."""
        return "text" if self.tokens else "numbers"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input, e.g. (channels, height, width)."""
        return tuple(self.train.x.shape[1:])
