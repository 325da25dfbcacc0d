"""Weights that a network starts from, out of files that are on the disk."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lthfunc.errors import UserError, invalid, unknown
from lthfunc.models.naming import matching
from lthfunc.tracebacks import first_line
from lthfunc.trees.convert import with_initial_values
from lthfunc.trees.files import flatten, load_tree
from lthfunc.trees.model import Model

SUFFIX = ".safetensors"
#: How the names of files end that torch.save wrote.
_PICKLED = {".pth", ".pt", ".bin", ".ckpt", ".tar", ".pkl", ".pickle"}


def with_weights(model: Model, name: str, source: str) -> Model:
    """The model with other initial values. name: of the architecture, as it was typed.

    source: a .safetensors file, of plain parameters and buffers or of a run (a ticket, a round's params); or for
    networks of torchvision and timm the name of their weights (``DEFAULT``, ``IMAGENET1K_V2``, timm's tag), if they
    have been downloaded before. Leaves of another shape, an output layer for other classes, are drawn from the seed.

    Raises UserError where the file isn't there, can't be read or doesn't fit.
    """
    values: Mapping[str, Tensor]
    if source.endswith(SUFFIX):
        if not Path(source).is_file():
            raise invalid("--weights", source, "a file that is there")
        values = _of_file(source)
    elif Path(source).suffix in _PICKLED or (Path(source).is_file() and ":" not in name):
        raise _pickled(source)
    elif name.startswith("torchvision:"):
        values = _of_torchvision(name.partition(":")[2], source)
    elif name.startswith("timm:"):
        values = _of_timm(name.partition(":")[2], source)
    else:
        raise invalid("--weights", source, "a .safetensors file, or the name of torchvision's or timm's weights")
    leaves = dict((*model.evaluating.named_parameters(), *model.evaluating.named_buffers()))
    values = {**values, **{name: values[theirs] for name, theirs in matching(values, leaves).items()}}
    for name, leaf in leaves.items():
        if name in values and values[name].is_complex() and not leaf.is_complex():
            raise UserError(f"--weights: {name} is complex in {source}, and real in the network")
    return with_initial_values(model, values)


def _of_file(source: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file; of a run's, its parameters and buffers."""
    tree, _ = load_tree(source)
    if isinstance(tree.get("params"), dict):
        tree = {**tree["params"], **tree.get("buffers", {})}
    return {name.replace("/", "."): leaf for name, leaf in flatten(tree).items()}  # names with a slash are nested


def _pickled(source: str) -> UserError:
    """What a pickled file given as weights is answered with: the commands to type."""
    if not Path(source).is_file():
        return invalid("--weights", source, "a file that is there")
    quoted, made = shlex.quote(source), shlex.quote(str(Path(source).with_suffix(SUFFIX)))
    return UserError(
        f"--weights: {source} is no .safetensors file; make one of it: lthfunc import {quoted}, then --weights {made}"
    )


def _of_torchvision(name: str, weights: str) -> Mapping[str, Tensor]:
    import torchvision

    known = torchvision.models.get_model_weights(name)
    members = list(dict.fromkeys([*known.__members__, "DEFAULT"]))
    if weights not in members:
        raise unknown("--weights", weights, members)
    url = (known.DEFAULT if weights == "DEFAULT" else known[weights]).url
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    ours = file.with_suffix(".safetensors")
    if ours.is_file():
        return load_tree(ours)[0]
    if not file.is_file():
        raise UserError(f"--weights: {weights!r} of {name} is not on this disk: put {url} into {file.parent}")
    command = f"lthfunc import {shlex.quote(str(file))}"
    raise UserError(f"--weights: {file} is a pickled file; make tensors of it first: {command}")


def _of_timm(name: str, weights: str) -> Mapping[str, Tensor]:
    import timm
    from huggingface_hub import try_to_load_from_cache

    tagged = name if weights == "DEFAULT" else f"{name.partition('.')[0]}.{weights}"
    try:
        config = timm.models.get_pretrained_cfg(tagged)
    except RuntimeError as error:  # a tag that it doesn't know
        raise invalid("--weights", weights, f"DEFAULT, or a tag of {name} ({first_line(error)})") from error
    repository = getattr(config, "hf_hub_id", None)
    if not repository:
        raise invalid("--weights", weights, f"a tag of {name} that the Hub has")
    file = try_to_load_from_cache(repository, "model.safetensors")
    if not isinstance(file, str):
        raise UserError(
            f"--weights: {weights!r} of {name} is not on this disk: model.safetensors of {repository} belongs into the "
            "Hugging Face cache"
        )
    return load_tree(file)[0]
