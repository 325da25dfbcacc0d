"""Losses and metrics of networks that give a class to each pixel of an image."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lthfunc.errors import UserError
from lthfunc.printable import dtype_and_shape
from lthfunc.trees.outputs import prediction
from lthfunc.trees.types import IGNORED_PIXEL


def pixel_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of each pixel's class, the mean over the pixels of the batch that have one.

    outputs: (n, classes, height, width). targets: int64 (n, height, width); 255 is a pixel without a class. Raises
    UserError for other shapes. Long et al. 2015, sec. 4.

    >>> lf.pixel_cross_entropy(torch.zeros(1, 2, 1, 3), torch.tensor([[[0, 1, 255]]]))
    tensor(0.6931)
    """
    outputs = _classes_from("pixel_cross_entropy", outputs, targets)
    total = F.cross_entropy(outputs, targets, ignore_index=IGNORED_PIXEL, reduction="sum")
    return total / (targets != IGNORED_PIXEL).sum().clamp(min=1)


def dice_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 - the soft Dice coefficient, the mean over the classes that an image has, and over images.

    The coefficient of a class is 2 Σ p t / (Σ p + Σ t), with probabilities p and t of 1 where the pixel is of it
    (Milletari et al. 2016, sec. 3; its squares are left out, as in Isensee et al. 2021). It weighs small objects as
    much as large ones. outputs: (n, classes, height, width). targets: int64 (n, height, width); 255 is a pixel without
    a class. Raises UserError for other shapes.

    >>> lf.dice_loss(torch.zeros(1, 2, 1, 4), torch.tensor([[[0, 0, 1, 1]]]))
    tensor(0.5000)
    """
    found = _classes_from("dice_loss", outputs, targets)
    pixels = _of_class(targets, found.shape[1])
    p = found.float().softmax(1) * pixels.counted
    shared, sizes = _summed(p * pixels.inside), _summed(p) + _summed(pixels.inside)
    present = _summed(pixels.inside) > 0
    return 1 - _mean_of(2 * shared / sizes.clamp(min=1e-12), present)


def dice_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """The sum of `pixel_cross_entropy` and `dice_loss`.

    outputs: (n, classes, height, width). targets: int64 (n, height, width); 255 is a pixel without a class. Raises
    UserError for other shapes. Isensee et al. 2021 (nnU-Net).

    >>> lf.dice_cross_entropy(torch.zeros(1, 2, 1, 4), torch.tensor([[[0, 0, 1, 1]]]))
    tensor(1.1931)
    """
    return pixel_cross_entropy(outputs, targets) + dice_loss(outputs, targets)


def mean_iou(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean intersection over union: of each image over the classes that it has or is given, and of images.

    The mean over images counts each alike, whatever the batch (Csurka et al. 2013, sec. 3); intersection over union of
    a whole data set lets large objects outweigh small ones. outputs: (n, classes, height, width). targets: int64
    (n, height, width); 255 is a pixel without a class. Raises UserError for other shapes.

    >>> outputs = torch.tensor([[[[2.0, 2.0, 0.0, 0.0]], [[0.0, 0.0, 1.0, 1.0]]]])
    >>> lf.mean_iou(outputs, torch.tensor([[[0, 1, 1, 1]]]))
    tensor(0.5833, dtype=torch.float64)
    """
    found = _classes_from("mean_iou", outputs, targets)
    pixels = _of_class(targets, found.shape[1])
    guessed = _of_class(found.argmax(1), found.shape[1]).inside * pixels.counted
    shared = _summed(guessed * pixels.inside).double()
    union = _summed(guessed) + _summed(pixels.inside) - shared
    return _mean_of(shared / union.clamp(min=1), union > 0)


def pixel_accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """The share of pixels whose largest output is their class: of each image, and the mean over images.

    outputs: (n, classes, height, width). targets: int64 (n, height, width); 255 is a pixel without a class. Raises
    UserError for other shapes.

    >>> lf.pixel_accuracy(torch.tensor([[[[1.0, 1.0]], [[0.0, 2.0]]]]), torch.tensor([[[0, 0]]]))
    tensor(0.5000, dtype=torch.float64)
    """
    found = _classes_from("pixel_accuracy", outputs, targets)
    right = (found.argmax(1) == targets).double()
    return _mean_of(right.flatten(1), (targets != IGNORED_PIXEL).flatten(1))


class _Pixels(NamedTuple):
    """inside: 1 where a pixel is of a class (n, classes, height, width). counted: 1 where it has one."""

    inside: Tensor
    counted: Tensor


def _of_class(targets: Tensor, classes: int) -> _Pixels:
    numbers = torch.arange(classes, device=targets.device).view(-1, 1, 1)
    counted = (targets != IGNORED_PIXEL).unsqueeze(1)
    return _Pixels((targets.unsqueeze(1) == numbers).float(), counted.float())


def _summed(values: Tensor) -> Tensor:
    """Over the pixels: (n, classes)."""
    return values.flatten(2).sum(2)


def _mean_of(values: Tensor, which: Tensor) -> Tensor:
    """The mean over images (n, …) of the mean of some values; 1 for an image with none, where nothing can be wrong."""
    count = which.sum(1)
    means = torch.where(which, values, 0).sum(1) / count.clamp(min=1)
    return torch.where(count > 0, means, 1).mean()


def _classes_from(name: str, outputs: Any, targets: Any) -> Tensor:
    """The output tensor. Raises UserError unless there is a class for each pixel of it."""
    found = prediction(outputs)
    of_pixels = isinstance(targets, Tensor) and not targets.is_floating_point() and targets.ndim == 3
    if not of_pixels or found.ndim != 4 or (found.shape[0], *found.shape[2:]) != tuple(targets.shape):
        raise UserError(
            f"{name}: expected outputs (n, classes, height, width) and int64 targets (n, height, width); outputs are "
            f"{dtype_and_shape(found)}, targets {dtype_and_shape(targets)}"
        )
    return found
