"""Anybody's tensors as a Dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lthfunc.errors import UserError, invalid
from lthfunc.trees.parts import packed
from lthfunc.trees.rng import permutation
from lthfunc.trees.types import Dataset, Scale, Split

#: One tensor of inputs, or several: in the order of the network's arguments, or by their names.
Inputs = Tensor | Sequence[Tensor] | Mapping[str, Tensor]

#: The split is the same for every seed, so that replicates are chosen by the same examples.
_SPLIT_SEED = 0
#: Bytes of pixels to take a mean of at a time.
_CHUNK = 1 << 26


def from_tensors(
    name: str,
    train: tuple[Inputs, Tensor],
    test: tuple[Inputs, Tensor],
    *,
    val: int,
    classes: int | None = None,
    scale: Scale | None = None,
    labels: Sequence[str] = (),
) -> Dataset:
    """A Dataset from (inputs, targets) pairs; `val` training examples are held out by a fixed permutation.

    Inputs are floats ready for the network, whole numbers (tokens), or anything that `scale` makes floats of (uint8
    pixels, say); several inputs come as a tuple, or by name, and a network gets them as it takes them. Targets are
    whole numbers from 0 on (n,), or one for each token (n, length); or floats, to be come close to: (n,) or (n,
    outputs), and `classes` is then the number of outputs. labels: the classes' names.

    Raises UserError where lengths differ, a target is not a class, or nothing is left to train on.
    """
    (train_x, parts), (test_x, test_parts) = _one(train[0]), _one(test[0])
    if parts != test_parts:
        raise UserError("test: its inputs have other shapes, dtypes or names than those of train")
    pairs = {"train": (train_x, targets_of(train[1])), "test": (test_x, targets_of(test[1]))}
    for option, (inputs, targets) in pairs.items():
        if len(inputs) != len(targets):
            raise UserError(f"{option}: {len(inputs)} inputs but {len(targets)} targets")
    size = len(train_x)
    if not 0 < val < size:
        raise invalid("val", val, f"a number of examples from 1 to {size - 1}")
    order = permutation(size, _SPLIT_SEED, "val-split", name)
    held, rest = order[:val], order[val:]
    x, y = pairs["train"]
    found = Dataset(
        name=name,
        train=Split(x[rest], y[rest]),
        val=Split(x[held], y[held]),
        test=Split(*pairs["test"]),
        classes=_outputs(pairs, classes, labels),
        scale=scale,
        parts=parts,
        labels=tuple(labels),
    )
    return found if scale is None else found._replace(scale=_checked(scale, found.shape))


def from_map_style(name: str, train: Sequence[Any], test: Sequence[Any], *, val: int) -> Dataset:
    """A Dataset from two map-style torch data sets of (input tensor, integer target) pairs, read into memory."""

    def stacked(examples: Sequence[Any]) -> tuple[Tensor, Tensor]:
        pairs = [examples[i] for i in range(len(examples))]
        return torch.stack([x for x, _ in pairs]), torch.tensor([int(y) for _, y in pairs])

    return from_tensors(name, stacked(train), stacked(test), val=val)


def scale_of(x: Tensor) -> Scale:
    """The normalisation of uint8 pixels (n, channels, ...): per channel, mean and deviation of pixel / 255."""
    total = torch.zeros(2, x.shape[1], dtype=torch.float64)
    each = max(1, _CHUNK // max(1, 8 * x[:1].numel()))
    for part in torch.split(x, each):
        pixels = part.double().transpose(0, 1).flatten(1) / 255
        total += torch.stack([pixels.sum(1), pixels.square().sum(1)])
    mean, square = total / (x.numel() // x.shape[1])
    deviation = (square - mean.square()).clamp(min=0).sqrt()
    return Scale(255.0, tuple(mean.tolist()), tuple(float(d) or 1.0 for d in deviation))


def parted(size: int, shares: Sequence[float], name: str) -> list[Tensor]:
    """Indices 0 … size-1 shuffled by a fixed permutation: one part for each share, and what is left."""
    order = permutation(size, _SPLIT_SEED, "test-split", name)
    counts = [max(1, round(size * share)) for share in shares]
    if sum(counts) >= size:
        raise UserError(f"--dataset: {name!r} has {size} examples, too few for validation and test splits")
    return list(torch.split(order, [*counts, size - sum(counts)]))


def _one(inputs: Inputs) -> tuple[Tensor, tuple[Any, ...]]:
    return (inputs, ()) if isinstance(inputs, Tensor) else packed(inputs)


def targets_of(y: Tensor) -> Tensor:
    """int64 as they are; or float32 (n, numbers)."""
    if y.is_floating_point():
        return (y if y.ndim > 1 else y[:, None]).float()
    return y.long()


def _outputs(pairs: Mapping[str, tuple[Tensor, Tensor]], classes: int | None, labels: Sequence[str]) -> int:
    """How many outputs a network has. Raises UserError for a target that none of them stands for."""
    y = pairs["train"][1]
    if y.is_floating_point():
        if classes not in (None, y.shape[1]):
            raise invalid("classes", classes, f"{y.shape[1]}, the numbers of a target")
        return y.shape[1]
    if classes is None:
        classes = len(labels) or 1 + int(max(targets.max() for _, targets in pairs.values()))
    for option, (_, targets) in pairs.items():
        wrong = ((targets < 0) | (targets >= classes)).nonzero()
        if len(wrong):
            where = tuple(wrong[0].tolist())
            raise UserError(
                f"{option}: target {int(targets[where])} of example {where[0]} is outside the {classes} classes, 0 to "
                f"{classes - 1}"
            )
    return classes


def _checked(scale: Scale, shape: tuple[int, ...]) -> Scale:
    for name, values in (("mean", scale.mean), ("std", scale.std)):
        if len(values) not in (1, shape[0]):
            raise invalid(f"scale: {name}", values, f"a number for each of {shape[0]} channels")
    return scale
