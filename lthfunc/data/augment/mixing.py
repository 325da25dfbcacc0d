"""Pairs of examples mixed, and their targets with them.

Examples 0 and 1 of a batch are a pair, 2 and 3, and so on; the order of a batch is random. Several ranks so mix what
one would. The last of an odd number of examples stays as it is.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.data.augment.boxes import Boxes
from lthfunc.data.augment.draws import below, check_images, check_positive, image_keys, symmetric_beta, uniform
from lthfunc.errors import UserError
from lthfunc.trees.augmenting import Augment

#: Streams of draws: of a share (some dozens), of a box, and of a choice.
_SHARE, _BOX, _CHOICE = 0, 100, 102


@public
def mixup(classes: int | None, alpha: float = 0.2) -> Augment:
    """Replace each example and its target by a mean of itself and another one, weighted by a random share.

    Zhang et al. 2018. classes: how many there are, whose numbers become probabilities; None for targets that are
    numbers. alpha: of the distribution of shares, Beta(alpha, alpha): small for examples that stay nearly as they are,
    1 for all shares alike. Returns an augmentation (inputs, targets, key) -> (inputs, targets); targets become float32
    (n, classes). Raises UserError for an alpha that isn't above 0, and for targets that cannot be mixed.

    >>> x, y = lf.mixup(3)(torch.rand(2, 3, 8, 8), torch.tensor([0, 2]), torch.tensor(5))
    >>> y.shape, y.sum(1)
    (torch.Size([2, 3]), tensor([1., 1.]))
    """
    check_positive("mixup", "alpha", alpha)

    def augment(inputs: Tensor, targets: Tensor, key: Tensor, first: int | None = None) -> tuple[Tensor, Tensor]:
        keys, other = _pairs("mixup", inputs, key, first)
        alone = other == torch.arange(len(other), device=other.device)
        share = torch.where(alone, 1.0, symmetric_beta(keys, _SHARE, alpha))
        return mixed(inputs, inputs[other], share), mixed_targets("mixup", targets, other, share, classes)

    return augment


@public
def cutmix(classes: int | None, alpha: float = 1.0) -> Augment:
    """Replace a rectangle of each image by that of another one, and its target by a mean weighted by the areas.

    Yun et al. 2019. classes: as `mixup` takes it. alpha: of the distribution of the image's own area, Beta(alpha,
    alpha). Returns an augmentation (images, targets, key) -> (images, targets). Raises UserError for an alpha that
    isn't above 0, and for targets that cannot be mixed.

    >>> x, y = lf.cutmix(3)(torch.rand(2, 3, 8, 8), torch.tensor([0, 2]), torch.tensor(5))
    >>> x.shape, y.shape
    (torch.Size([2, 3, 8, 8]), torch.Size([2, 3]))
    """
    check_positive("cutmix", "alpha", alpha)

    def augment(inputs: Tensor, targets: Tensor, key: Tensor, first: int | None = None) -> tuple[Tensor, Tensor]:
        _, _, height, width = check_images("cutmix", inputs)
        keys, other = _pairs("cutmix", inputs, key, first)
        inside = exchanged(keys, symmetric_beta(keys, _SHARE, alpha), height, width).inside(height, width)
        own = 1 - inside.float().mean((1, 2, 3))
        return torch.where(inside, inputs[other], inputs), mixed_targets("cutmix", targets, other, own, classes)

    return augment


@public
def mixup_or_cutmix(classes: int | None, alpha: float = 0.2) -> Augment:
    """`mixup` with alpha for half of the pairs, chosen at random, and `cutmix` with 1 for the others.

    classes: as `mixup` takes it. Returns an augmentation (images, targets, key) -> (images, targets). Raises UserError
    for an alpha that isn't above 0, and for targets that cannot be mixed.

    >>> x, y = lf.mixup_or_cutmix(3)(torch.rand(2, 3, 8, 8), torch.tensor([0, 2]), torch.tensor(5))
    >>> x.shape, y.shape
    (torch.Size([2, 3, 8, 8]), torch.Size([2, 3]))
    """
    both = mixup(classes, alpha), cutmix(classes)

    def augment(inputs: Tensor, targets: Tensor, key: Tensor, first: int | None = None) -> tuple[Tensor, Tensor]:
        check_images("mixup_or_cutmix", inputs)
        keys, _ = _pairs("mixup_or_cutmix", inputs, key, first)
        chosen = uniform(keys, _CHOICE) < 0.5
        (x, y), (cut_x, cut_y) = (each(inputs, targets, key, first) for each in both)
        return torch.where(_column(chosen, x), x, cut_x), torch.where(_column(chosen, y), y, cut_y)

    return augment


def mixed(values: Tensor, others: Tensor, share: Tensor) -> Tensor:
    """share (n,) · values + (1 - share) · others."""
    share = _column(share, values).to(values.dtype)
    return values * share + others * (1 - share)


def mixed_targets(name: str, targets: Tensor, other: Tensor, share: Tensor, classes: int | None) -> Tensor:
    """Targets mixed with those of the examples `other`; class numbers become probabilities."""
    if not targets.is_floating_point():
        if classes is None or targets.ndim != 1:
            raise UserError(f"{name}: works on targets that are a class for each example, or numbers")
        targets = F.one_hot(targets, classes).float()
    return mixed(targets, targets[other], share)


def exchanged(keys: Tensor, share: Tensor, height: int, width: int) -> Boxes:
    """Boxes of about 1 - share (n,) of the image's area, around a random pixel, without what lies outside."""
    side = (1 - share).sqrt()
    starts, sizes = [], []
    for axis, length in enumerate((height, width)):
        half = (side * length).long() // 2
        middle = below(keys, _BOX + axis, length)
        start, stop = (middle - half).clamp(min=0), (middle + half).clamp(max=length)
        starts.append(start)
        sizes.append(stop - start)
    return Boxes(*starts, *sizes)


def _pairs(name: str, inputs: Tensor, key: Tensor, first: int | None) -> tuple[Tensor, Tensor]:
    """(a key for each example, the same for both of a pair; the number of the other example), each (n,).

    first: on several ranks.
    """
    count = len(inputs)
    if first is not None and count % 2:
        raise UserError(
            f"{name}: pairs examples, so each rank's part of a batch must be even, not {count} (batch_size)"
        )
    numbers = torch.arange(count, device=inputs.device)
    other = (numbers ^ 1).clamp(max=count - 1)
    return image_keys(key, count, first or 0)[numbers - numbers % 2], other


def _column(values: Tensor, like: Tensor) -> Tensor:
    """Values (n,) as (n, 1, …), to go with (n, …)."""
    return values.view(-1, *(1,) * (like.ndim - 1))
