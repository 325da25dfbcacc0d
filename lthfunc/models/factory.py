"""From a name and a data set's shape to a Model, or a reason why that pair cannot work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import entry_points
from typing import Any

import torch
from torch import nn

from lthfunc.arguments import public
from lthfunc.catalog.networks import ARCHS, ENTRY_POINTS, canonical
from lthfunc.errors import UserError, unknown
from lthfunc.models.alex import AlexNet
from lthfunc.models.conv import ConvNet
from lthfunc.models.lenet import LeNet5, LeNet300, WideLeNet5
from lthfunc.models.pretrained import with_weights
from lthfunc.models.resnet import ResNet
from lthfunc.models.small_images import small_image_densenet121, small_image_resnet
from lthfunc.models.strangers import check_outputs, check_tokens, warm
from lthfunc.models.transformer import CharTransformer
from lthfunc.models.vgg import VGG
from lthfunc.models.vit import ViT
from lthfunc.models.wide_resnet import WideResNet
from lthfunc.plugins import called, load_plugin
from lthfunc.trees.dataset_checks import check_data
from lthfunc.trees.model import Model, make_model, with_prunable
from lthfunc.trees.multi_input import InputSpec
from lthfunc.trees.types import Dataset

Shape = tuple[int, ...]

#: Collections of networks that are taken by name.
_ZOOS = ("torchvision:", "timm:")

_MODULES: dict[str, Callable[..., nn.Module]] = {
    "lenet300": LeNet300,
    "lenet5": LeNet5,
    "lenet5-wide": WideLeNet5,
    "conv2": partial(ConvNet, widths=(64,)),
    "conv4": partial(ConvNet, widths=(64, 128)),
    "conv6": partial(ConvNet, widths=(64, 128, 256)),
    "alexnet": AlexNet,
    **{f"vgg{depth}": partial(VGG, depth=depth) for depth in (11, 13, 16, 19)},
    **{f"resnet{depth}": partial(ResNet, depth=depth) for depth in (20, 32, 56)},
    **{f"resnet{depth}": partial(small_image_resnet, depth=depth) for depth in (18, 34, 50)},
    "wrn-22-2": partial(WideResNet, depth=22, width=2),
    "wrn-28-10": partial(WideResNet, depth=28, width=10),
    "densenet121": small_image_densenet121,
    "vit-tiny": ViT,
    "char-transformer": CharTransformer,
}


@public
def build_for(
    name: str,
    data: Dataset,
    options: Mapping[str, str] | None = None,
    *,
    weights: str | None = None,
    prune_only: Sequence[str] = (),
    keep: Sequence[str] = (),
    any_outputs: bool = False,
) -> Model:
    """`build` for a data set. weights: what it starts from (`pretrained`). prune_only, keep: see `with_prunable`.

    any_outputs: the network's outputs may be anything, for a loss of the user's own.
    """
    name, data = canonical(name), check_data(data)
    model = build(name, data.shape, data.classes, options, data.inputs, parts=data.parts, any_outputs=any_outputs)
    if data.tokens and not data.mapped:
        check_tokens(name, model, data.train.x, data.val.x, data.test.x)
    if weights is not None:
        model = with_weights(model, name, weights)
    return with_prunable(model, prune_only, keep)


@public
def build(
    name: str,
    shape: Shape,
    classes: int,
    options: Mapping[str, str] | None = None,
    inputs: str = "numbers",
    *,
    parts: Sequence[InputSpec] = (),
    any_outputs: bool = False,
) -> Model:
    """The architecture `name` for inputs of `shape` and so many classes, with Gaussian Glorot initialisation.

    `name` is one of the catalogue; ``torchvision:NAME`` or ``timm:NAME``; the name of an installed entry point of the
    group ``lthfunc.models``; ``package.module:function`` or ``path/to/file.py:name``. Those of the user's own return an
    nn.Module, and are given what their signature accepts of ``shape`` or ``input_shape`` (without the batch) and
    ``classes`` or ``num_classes``; of several inputs, the shapes of all as ``shapes``. options: further arguments, as
    text. inputs: "numbers", or "text", whole numbers that an embedding reads.

    Raises UserError where the name is unknown or the pair cannot work, with the reason.
    """
    name, options = canonical(name), options or {}
    check_fit(name, shape, inputs)
    module = made(name, shape, classes, options, parts)
    if name not in ARCHS:
        warm(name, module, shape, inputs, parts)
    short = name.rpartition(":")[2] if name.startswith(_ZOOS) else name
    model = make_model(module, name=short, tokens=inputs == "text", parts=parts)
    if name not in ARCHS:
        check_outputs(name, model, shape, classes, any_outputs)
    return model


def made(
    name: str, shape: Shape, classes: int, options: Mapping[str, str], parts: Sequence[InputSpec] = ()
) -> nn.Module:
    """The module of an architecture, on PyTorch's default device. Raises UserError where it cannot be made."""
    # What a module draws for parameters that no seed draws anew (a transformer's places) is the same in every process.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name in _MODULES:
            function = _MODULES[name]
            given = function.keywords if isinstance(function, partial) else {}
            offered = {"shape": shape, "classes": classes, **given}
        else:
            function = _function(name, shape)
            offered = {"shape": shape, "input_shape": shape, "classes": classes, "num_classes": classes,
                       "shapes": tuple(part.shape for part in parts)}  # fmt: skip
        module = called("--arch", name, function, offered, options)
    if not isinstance(module, nn.Module):
        raise UserError(f"--arch: {name!r} returned a {type(module).__name__}, not an nn.Module")
    return module


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

        def of_timm(num_classes: int, **given: Any) -> nn.Module:
            for option in given:
                if option in ("checkpoint_path", "pretrained"):
                    raise UserError(
                        f"--arch-option: {option} loads weights, which are then drawn anew; --weights FILE.safetensors "
                        "starts from a file (lthfunc import FILE makes one of a pickled one), --weights DEFAULT from "
                        "timm's own"
                    )
            made: nn.Module = timm.create_model(
                rest, pretrained=False, num_classes=num_classes, in_chans=shape[0], **given
            )
            return made

        return of_timm
    if ":" not in name:
        return next(iter(entry_points(group=ENTRY_POINTS, name=name))).load()  # type: ignore[no-any-return]
    return load_plugin("--arch", name)


def check_fit(name: str, shape: Shape, inputs: str) -> None:
    """Raise UserError where a network of the catalogue cannot work on such inputs."""
    if name not in ARCHS:
        return
    least, takes = ARCHS[name].min_side, ARCHS[name].takes
    if takes == "text" or inputs == "text":
        if takes == inputs:
            return
        what = "text, numbers of characters of shape (length,)" if takes == "text" else takes
        if inputs == "text":
            given = f"tokens of shape {shape}; x.float(), or a scale, makes numbers of whole numbers"
        else:
            given = f"{inputs} of shape {shape}"
        raise UserError(f"--arch: {name!r} works on {what}, not on {given}")
    if takes == "numbers":
        return
    if len(shape) != 3:
        raise UserError(f"--arch: {name!r} works on images (channels, height, width), not on inputs of shape {shape}")
    if min(shape[1:]) < least:
        size = f"{shape[1]}×{shape[2]}"
        images = [arch for arch in ARCHS.values() if arch.takes != "text"]
        fitting = ", ".join(arch.name for arch in images if arch.min_side <= min(shape[1:]))
        raise UserError(
            f"--arch: {name!r} needs images of at least {least}×{least}, these are {size} (fitting: {fitting})"
        )


def _named(name: str) -> Callable[..., Model]:
    def make(shape: Shape = (1, 28, 28), classes: int = 10, **options: object) -> Model:
        inputs = "text" if ARCHS[name].takes == "text" else "numbers"
        return build(name, shape, classes, {key: repr(value) for key, value in options.items()}, inputs)

    make.__name__ = make.__qualname__ = name.replace("-", "_")
    make.__doc__ = f"{ARCHS[name].about}, as a Model for inputs of `shape`."
    return make


lenet300 = _named("lenet300")
lenet5 = _named("lenet5")
lenet5_wide = _named("lenet5-wide")
conv2 = _named("conv2")
conv4 = _named("conv4")
conv6 = _named("conv6")
alexnet = _named("alexnet")
vgg11 = _named("vgg11")
vgg13 = _named("vgg13")
vgg16 = _named("vgg16")
vgg19 = _named("vgg19")
resnet20 = _named("resnet20")
resnet32 = _named("resnet32")
resnet56 = _named("resnet56")
resnet18 = _named("resnet18")
resnet34 = _named("resnet34")
resnet50 = _named("resnet50")
wrn_22_2 = _named("wrn-22-2")
wrn_28_10 = _named("wrn-28-10")
densenet121 = _named("densenet121")
vit_tiny = _named("vit-tiny")
char_transformer = _named("char-transformer")
