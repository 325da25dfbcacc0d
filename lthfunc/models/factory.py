"""From a name and a data set's shape to a Model, or a reason why that pair cannot work."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from lthfunc.errors import UserError
from lthfunc.models.catalog import ARCHS, canonical
from lthfunc.models.conv import ConvNet
from lthfunc.models.lenet import LeNet5, LeNet300
from lthfunc.models.resnet import ResNet20, small_image_resnet18
from lthfunc.plugins import load_plugin
from lthfunc.trees.model import Model, from_module

Shape = tuple[int, ...]

_MODULES: dict[str, Callable[[Shape, int], nn.Module]] = {
    "lenet300": LeNet300,
    "lenet5": LeNet5,
    "conv2": lambda shape, classes: ConvNet(shape, classes, (64,)),
    "conv4": lambda shape, classes: ConvNet(shape, classes, (64, 128)),
    "conv6": lambda shape, classes: ConvNet(shape, classes, (64, 128, 256)),
    "resnet20": ResNet20,
    "resnet18": small_image_resnet18,
}


def build(name: str, shape: Shape, classes: int) -> Model:
    """The architecture `name` for inputs of `shape` and so many classes, with Gaussian Glorot initialisation.

    `name` is one of the catalogue, or ``package.module:function`` where the function takes (shape, classes) and
    returns an nn.Module.

    Raises UserError where the name is unknown or the pair cannot work, with the reason.
    """
    name = canonical(name)
    if name in ARCHS:
        _check_fit(name, shape)
        module = _MODULES[name](shape, classes)
    else:
        module = load_plugin("--arch", name)(shape, classes)
        if not isinstance(module, nn.Module):
            raise UserError(f"--arch: {name!r} returned a {type(module).__name__}, not an nn.Module")
        _check_forward(name, module, shape, classes)
    return from_module(module, name=name)


def _check_fit(name: str, shape: Shape) -> None:
    least = ARCHS[name].min_side
    if least == 1:
        return
    if len(shape) != 3:
        raise UserError(f"--arch: {name!r} works on images (channels, height, width), not on inputs of shape {shape}")
    if min(shape[1:]) < least:
        size = f"{shape[1]}×{shape[2]}"
        fitting = ", ".join(arch.name for arch in ARCHS.values() if arch.min_side <= min(shape[1:]))
        raise UserError(
            f"--arch: {name!r} needs images of at least {least}×{least}, these are {size} (fitting: {fitting})"
        )


def _check_forward(name: str, module: nn.Module, shape: Shape, classes: int) -> None:
    """Run a stranger's module once, so that a pair that cannot work is refused before training starts."""
    training = module.training
    try:
        with torch.no_grad():
            out = module.eval()(torch.zeros(2, *shape))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--arch: {name!r} cannot take inputs of shape {shape}: {reason}") from error
    finally:
        module.train(training)
    if tuple(out.shape) != (2, classes):
        raise UserError(f"--arch: {name!r} gives outputs of shape {tuple(out.shape[1:])}, not ({classes},)")


def _named(name: str) -> Callable[..., Model]:
    def make(shape: Shape = (1, 28, 28), classes: int = 10) -> Model:
        return build(name, shape, classes)

    make.__name__ = make.__qualname__ = name
    make.__doc__ = f"{ARCHS[name].about}, as a Model for inputs of `shape`."
    return make


lenet300 = _named("lenet300")
lenet5 = _named("lenet5")
conv2 = _named("conv2")
conv4 = _named("conv4")
conv6 = _named("conv6")
resnet20 = _named("resnet20")
resnet18 = _named("resnet18")
