"""From a name and a data set's shape to a Model, or a reason why that pair cannot work."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from lthfunc.arguments import public
from lthfunc.catalog.networks import NETWORKS, ZOOS, canonical
from lthfunc.errors import UnfitInputsError, UserError, failing_as_options, invalid
from lthfunc.models.pretrained import with_weights
from lthfunc.models.user_module_checks import check_outputs, check_tokens, materialize_lazy
from lthfunc.plugins import called
from lthfunc.printable import a_or_an
from lthfunc.trees.dataset_checks import check_data
from lthfunc.trees.model import Model, from_module, with_prunable
from lthfunc.trees.multi_input import InputSpec
from lthfunc.trees.types import Dataset

Shape = tuple[int, ...]


@public
def build_for(
    name: str,
    data: Dataset,
    options: Mapping[str, str] | None = None,
    *,
    weights: str | None = None,
    trained: bool = False,
    prune_only: Sequence[str] = (),
    never_prune: Sequence[str] = (),
    any_outputs: bool = False,
) -> Model:
    """`build` for a data set. weights: what it starts from, and trained: whether as a whole trained network
    (`pretrained`). prune_only, never_prune: see `with_prunable`.

    any_outputs: the network's outputs may be anything, for a loss of the user's own.
    """
    name, data = canonical(name, "name"), check_data(data)
    places = tuple(data.train.y.shape[1:]) if data.pixels else ()
    if name in NETWORKS and NETWORKS[name].targets == "pixels" and not (places or any_outputs):
        raise UnfitInputsError(f"arch: {name!r} tells the class of each pixel, and {data.name} has no such targets")
    model = build(
        name, data.shape, data.classes, options, data.inputs, parts=data.parts, any_outputs=any_outputs, places=places
    )
    if data.tokens and not data.mapped:
        check_tokens(name, model, data.train.x, data.val.x, data.test.x)
    model = with_prunable(model, prune_only, never_prune)  # first, since it draws what it adds
    return model if weights is None else with_weights(model, name, weights, trained=trained)


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
    places: tuple[int, ...] = (),
) -> Model:
    """The architecture `name` for inputs of `shape` and so many classes, with Gaussian Glorot initialisation.

    `name` is one of the catalogue; ``torchvision:NAME`` or ``timm:NAME``; the name of an installed entry point of the
    group ``lthfunc.models``; ``module:function`` or ``path/to/file.py:name``. Those of the user's own return an
    nn.Module, and are given what their signature accepts of ``shape`` or ``input_shape`` (without the batch) and
    ``classes`` or ``num_classes``; of several inputs, the shapes of all as ``shapes``. options: further arguments, as
    text. inputs: "numbers", or "text", whole numbers that an embedding reads.

    Raises UserError where the name is unknown or the pair cannot work, with the reason.
    """
    name, options = canonical(name, "name"), options or {}
    check_fit(name, shape, inputs)
    module = made(name, shape, classes, options, parts)
    if name not in NETWORKS:
        materialize_lazy(name, module, shape, inputs, parts)
    short = name if ZOOS.find(name) is None else name.rpartition(":")[2]
    model = from_module(module, name=short, tokens=inputs == "text", parts=parts, warn=False)
    if name not in NETWORKS or places:
        check_outputs(name, model, shape, classes, any_outputs, places)
    return model


def made(
    name: str, shape: Shape, classes: int, options: Mapping[str, str], parts: Sequence[InputSpec] = ()
) -> nn.Module:
    """The module of an architecture, on PyTorch's default device. Raises UserError where it cannot be made."""
    # What a module draws for parameters that no seed draws anew (a transformer's places) is the same in every process.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        offered = {"shape": shape, "classes": classes}
        if name in NETWORKS:
            function, offered = NETWORKS.load(name), {**offered, **NETWORKS[name].arguments}
            _check_sizes(function, options)
        else:
            zoo = ZOOS.find(name)
            with failing_as_options({NETWORKS.option: "arch"}):
                function = NETWORKS.load(name) if zoo is None else ZOOS.load(name)
            offered |= {"input_shape": shape, "num_classes": classes, "shapes": tuple(part.shape for part in parts),
                        **({} if zoo is None else zoo[1])}  # fmt: skip
        if isinstance(function, nn.Module):  # one that the user has made
            if options:
                raise invalid("arch_option", next(iter(options)), f"nothing with {name}, which is a module already")
            return function
        module = called("arch", name, function, offered, options)
    if not isinstance(module, nn.Module):
        raise UserError(f"arch: {name!r} returned {a_or_an(type(module).__name__)}, not an nn.Module")
    return module


def _check_sizes(function: Callable[..., nn.Module], options: Mapping[str, str]) -> None:
    """Raise UserError where an option of a network of the catalogue that counts something, or how many times as wide
    it is, is no such number."""
    for name, each in inspect.signature(function).parameters.items():
        given = str(options.get(name, 1))
        if each.annotation == "int" and not (given.isdecimal() and int(given) > 0):
            raise invalid("arch_option", f"{name}={given}", "a whole number of at least 1")
        if each.annotation == "float" and name == "width" and not _is_positive(given):
            raise invalid("arch_option", f"{name}={given}", "a number above 0")


def _is_positive(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


def check_fit(name: str, shape: Shape, inputs: str) -> None:
    """Raise UnfitInputsError where a network of the catalogue cannot work on such inputs."""
    if name not in NETWORKS:
        return
    least, takes = NETWORKS[name].min_side, NETWORKS[name].inputs
    if takes == "text" or inputs == "text":
        if takes == inputs:
            return
        what = "text, numbers of characters of shape (length,)" if takes == "text" else takes
        if inputs == "text":
            given = f"tokens of shape {shape}; x.float(), or a scale, makes numbers of whole numbers"
        else:
            given = f"{inputs} of shape {shape}"
        raise UnfitInputsError(f"arch: {name!r} works on {what}, not on {given}")
    if takes == "numbers":
        return
    if len(shape) != 3:
        raise UnfitInputsError(
            f"arch: {name!r} works on images (channels, height, width), not on inputs of shape {shape}"
        )
    if min(shape[1:]) < least:
        size = f"{shape[1]}×{shape[2]}"
        images = [(each, entry) for each, entry in NETWORKS.items() if entry.inputs != "text"]
        fitting = ", ".join(each for each, entry in images if entry.min_side <= min(shape[1:]))
        raise UnfitInputsError(
            f"arch: {name!r} needs images of at least {least}×{least}, these are {size} (fitting: {fitting})"
        )


@functools.cache
def __getattr__(attribute: str) -> Callable[..., Model]:
    """The function of a network of the catalogue, as `lf.models` has it."""
    name = next((each for each in NETWORKS if each.replace("-", "_") == attribute), None)
    if name is None:
        raise AttributeError(f"module {__name__!r} has no attribute {attribute!r}")
    entry = NETWORKS[name]

    def make(shape: Shape = (1, 28, 28), classes: int = 10, **options: object) -> Model:
        inputs = "text" if entry.inputs == "text" else "numbers"
        return build(name, shape, classes, {key: repr(value) for key, value in options.items()}, inputs)

    make.__name__ = make.__qualname__ = attribute
    make.__doc__ = f"{entry.about}, as a Model for inputs of `shape`."
    return make
