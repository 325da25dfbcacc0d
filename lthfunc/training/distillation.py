"""Losses that compare a network with its teacher, by outputs and by features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lthfunc.arguments import public
from lthfunc.errors import ArgumentError, UserError
from lthfunc.printable import dtype_and_shape
from lthfunc.training.loss_context import ContextLoss, LossContext, with_context
from lthfunc.training.loss_terms import sum_of_losses
from lthfunc.training.losses import Loss, cross_entropy
from lthfunc.training.teachers import TeacherOutputs
from lthfunc.trees.outputs import prediction


@public
def distillation(
    teacher: nn.Module, *, weight: float = 0.9, temperature: float = 4.0, loss: Loss = cross_entropy
) -> Loss:
    """A loss by which a network learns from a teacher: (1 - weight) of the loss, and weight of `teacher_divergence`.

    Hinton, Vinyals & Dean 2015, sec. 2. teacher: a trained module for the same inputs and classes; it is copied, and
    called in evaluation mode without a gradient on what the network gets, augmented inputs included (`to_module` makes
    one of a ticket). weight: in [0, 1]. temperature: what logits are divided by, above 0. loss: of the targets. Returns
    a loss. Raises UserError, when it is called, where the teacher has other inputs or classes.

    >>> teacher = nn.Linear(4, 2)  # trained
    >>> data = lf.data.from_tensors("tiny", (torch.randn(9, 4), [0, 1, 1] * 3), (torch.randn(2, 4), [0, 1]), val=3)
    >>> model = lf.from_module(nn.Linear(4, 2))
    >>> train = lf.train(model, data, optimizer=lf.sgd(0.1), steps=5, batch_size=2, loss=lf.distillation(teacher))
    >>> int(train(lf.init(model)).step)
    5
    """
    terms = sum_of_losses((1 - weight, loss), (weight, teacher_divergence(temperature)))
    return with_context(terms, teacher=teacher)


@public
def teacher_divergence(temperature: float = 4.0) -> Loss:
    """The divergence of a network's classes from its teacher's, times the square of the temperature.

    KL(softmax(teacher / temperature) ‖ softmax(outputs / temperature)), the mean over examples and, of tokens and
    pixels, places; the square keeps its gradient as large as that of cross entropy (Hinton et al. 2015, sec. 2).
    temperature: above 0. Returns a loss that requires a teacher (`with_context`). Raises UserError, when it is called,
    where outputs have another shape than the teacher's.

    >>> term = lf.with_context(lf.teacher_divergence(2.0), teacher=nn.Identity())
    >>> x = torch.tensor([[1.0, 2.0]])
    >>> term(x, torch.tensor([0]), lf.LossContext(x))
    tensor(0.)
    """

    def divergence(outputs: Any, targets: Any, context: LossContext) -> Tensor:
        ours, theirs = prediction(outputs), prediction(_taught("teacher_divergence", context).outputs)
        if ours.shape != theirs.shape:
            raise UserError(
                f"teacher: its outputs are {dtype_and_shape(theirs)}, the network's {dtype_and_shape(ours)} (expected "
                "the same classes)"
            )
        places = (len(ours), *ours.shape[2:])
        of_pixels = ours.ndim == 4 and getattr(targets, "shape", None) == places  # whose classes come second
        both = (each.movedim(1, -1) if of_pixels else each for each in (ours, theirs))
        mine, wanted = (F.log_softmax(each.float() / temperature, -1).flatten(0, -2) for each in both)
        return F.kl_div(mine, wanted, reduction="batchmean", log_target=True) * temperature**2

    return ContextLoss(divergence)


@public
def feature_matching(layers: Mapping[str, str]) -> Loss:
    """The mean squared difference between features of a network and of its teacher, the mean over pairs of layers.

    The hints of FitNets (Romero et al. 2015, eq. 3). layers: of the network -> of the teacher, by name, whose outputs
    have the same shape; where the teacher's are wider, give the network a linear layer or a 1×1 convolution as the
    regressor, and name it. Returns a loss that requires a teacher (`with_context`). Raises UserError, when it is
    called, where shapes differ.

    >>> hints = lf.feature_matching({"0": "0"})
    >>> both = lf.sum_of_losses((1, lf.cross_entropy), (10, hints))
    >>> loss = lf.with_context(both, teacher=nn.Sequential(nn.Linear(4, 2)))
    >>> model = lf.from_module(nn.Sequential(nn.Linear(4, 2)))
    >>> lf.loss_of(model, {}, loss)(lf.init(model).params, (torch.ones(3, 4), torch.tensor([0, 1, 1]))).shape
    torch.Size([])
    """
    return _of_pairs("feature_matching", layers, lambda ours, theirs: F.mse_loss(ours, theirs))


@public
def attention_transfer(layers: Mapping[str, str]) -> Loss:
    """The distance between where a network and its teacher look, the mean over pairs of layers.

    Zagoruyko & Komodakis 2017, eq. 2: the attention map of a layer is the mean over channels of its squared outputs,
    divided by its norm; the distance is the mean squared difference of two maps. layers: of the network -> of the
    teacher, by name, whose outputs (n, channels, ...) have the same places; the channels may differ. Returns a loss
    that requires a teacher (`with_context`); 1,000 is a common weight. Raises UserError, when it is called, where
    places differ.

    >>> student, teacher = nn.Conv2d(1, 2, 3), nn.Conv2d(1, 8, 3)
    >>> looks = lf.with_context(lf.attention_transfer({"0": "0"}), teacher=nn.Sequential(teacher))
    >>> model = lf.from_module(nn.Sequential(student, nn.Flatten(), nn.Linear(2 * 36, 10)))
    >>> lf.loss_of(model, {}, looks)(lf.init(model).params, (torch.ones(3, 1, 8, 8), torch.tensor([0, 1, 1]))).shape
    torch.Size([])
    """

    def distance(ours: Tensor, theirs: Tensor) -> Tensor:
        return (_attention(ours) - _attention(theirs)).square().mean()

    return _of_pairs("attention_transfer", layers, distance, of_channels=True)


def _attention(features: Tensor) -> Tensor:
    return F.normalize(features.float().square().mean(1).flatten(1))


def _of_pairs(
    name: str, layers: Mapping[str, str], distance: Callable[[Tensor, Tensor], Tensor], *, of_channels: bool = False
) -> Loss:
    """The mean distance of the layers' outputs. of_channels: whether their channels may differ in number."""
    if not layers:
        raise ArgumentError(f"{name}: layers must be at least one, as {{layer of the network: layer of the teacher}}")

    def of_features(outputs: Any, targets: Any, context: LossContext) -> Tensor:
        taught = _taught(name, context).features
        pairs = [(mine, context.features[mine], taught[other]) for mine, other in layers.items()]
        for mine, ours, theirs in pairs:
            _check_alike(name, mine, ours, theirs, of_channels=of_channels)
        return torch.stack([distance(ours, theirs) for _, ours, theirs in pairs]).mean()

    return ContextLoss(of_features, tuple(layers), tuple(layers.values()))


def _check_alike(name: str, layer: str, ours: Any, theirs: Any, *, of_channels: bool) -> None:
    """Raise UserError for outputs of layers that cannot be compared."""
    shapes = [tuple(each.shape) if isinstance(each, Tensor) else () for each in (ours, theirs)]
    if of_channels:
        shapes = [(shape[0], *shape[2:]) if len(shape) > 2 else () for shape in shapes]
    if not shapes[0] or shapes[0] != shapes[1]:
        wanted = "(n, channels, ...) with the same places" if of_channels else "the same shape"
        raise UserError(
            f"{name}: {layer!r} gives {dtype_and_shape(ours)}, the teacher's layer {dtype_and_shape(theirs)} (expected "
            f"{wanted})"
        )


def _taught(name: str, context: LossContext) -> TeacherOutputs:
    if context.teacher is None:
        raise UserError(f"{name}: requires a teacher; lf.with_context(loss, teacher=net) gives it one")
    return context.teacher
