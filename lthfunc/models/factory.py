"""From a name and a data set's shape to a Model, or a reason why that pair cannot work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points

import torch
from torch import nn

from lthfunc.errors import UserError, invalid, unknown
from lthfunc.frames import first_line, place_of
from lthfunc.models.catalog import ARCHS, ENTRY_POINTS, canonical
from lthfunc.models.conv import ConvNet
from lthfunc.models.lenet import LeNet5, LeNet300
from lthfunc.models.resnet import ResNet20, small_image_resnet18
from lthfunc.plugins import called, load_plugin
from lthfunc.trees.model import Model, from_module

Shape = tuple[int, ...]

#: Collections of networks that are taken by name.
_ZOOS = ("torchvision:", "timm:")

_MODULES: dict[str, Callable[[Shape, int], nn.Module]] = {
    "lenet300": LeNet300,
    "lenet5": LeNet5,
    "conv2": lambda shape, classes: ConvNet(shape, classes, (64,)),
    "conv4": lambda shape, classes: ConvNet(shape, classes, (64, 128)),
    "conv6": lambda shape, classes: ConvNet(shape, classes, (64, 128, 256)),
    "resnet20": ResNet20,
    "resnet18": small_image_resnet18,
}


def build(name: str, shape: Shape, classes: int, options: Mapping[str, str] | None = None) -> Model:
    """The architecture `name` for inputs of `shape` and so many classes, with Gaussian Glorot initialisation.

    `name` is one of the catalogue; ``torchvision:NAME`` or ``timm:NAME``; the name of an installed entry point of the
    group ``lthfunc.models``; ``package.module:function`` or ``path/to/file.py:name``. Those of the user's own return an
    nn.Module, and are given what their signature accepts of ``shape`` or ``input_shape`` (without the batch) and
    ``classes`` or ``num_classes``. options: further arguments, as text.

    Raises UserError where the name is unknown or the pair cannot work, with the reason.
    """
    name, options = canonical(name), options or {}
    if name in ARCHS:
        _check_fit(name, shape)
        if options:
            raise invalid("--arch-option", next(iter(options)), f"a network of your own with it; {name} takes none")
        module = _MODULES[name](shape, classes)
    else:
        offered = {"shape": shape, "input_shape": shape, "classes": classes, "num_classes": classes}
        module = called("--arch", name, _function(name, shape), offered, options)
        if not isinstance(module, nn.Module):
            raise UserError(f"--arch: {name!r} returned a {type(module).__name__}, not an nn.Module")
        _check_forward(name, module, shape, classes)
    return from_module(module, name=name.rpartition(":")[2] if name.startswith(_ZOOS) else name)


def _function(name: str, shape: Shape) -> Callable[..., nn.Module]:
    """What makes a network that is not of the catalogue."""
    zoo, _, rest = name.partition(":")
    if zoo == "torchvision":
        import torchvision

        if rest not in torchvision.models.list_models(module=torchvision.models):
            raise unknown("--arch", rest, torchvision.models.list_models(module=torchvision.models))
        return lambda num_classes, **given: torchvision.models.get_model(
            rest, weights=None, num_classes=num_classes, **given
        )
    if zoo == "timm":
        try:
            import timm
        except ImportError as error:
            raise UserError("--arch: timm's networks need timm (pip install 'lthfunc[timm]')") from error
        return lambda num_classes, **given: timm.create_model(
            rest, pretrained=False, num_classes=num_classes, in_chans=shape[0], **given
        )
    if ":" not in name:
        return next(iter(entry_points(group=ENTRY_POINTS, name=name))).load()  # type: ignore[no-any-return]
    return load_plugin("--arch", name)


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
    except Exception as error:
        raise UserError(
            f"--arch: {name!r} cannot take inputs of shape {shape}{place_of(error)}: {first_line(error)}"
        ) from error
    finally:
        module.train(training)
    if not isinstance(out, torch.Tensor):
        raise UserError(f"--arch: {name!r} gives a {type(out).__name__}, not a tensor of outputs (batch, {classes})")
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
