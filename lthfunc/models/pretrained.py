"""Weights that a network starts from, out of files that are on the disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lthfunc.catalog.data_sets import SUFFIX
from lthfunc.catalog.networks import PICKLED
from lthfunc.errors import UserError, invalid, unknown
from lthfunc.models.checkpoint_reader import import_checkpoint
from lthfunc.models.naming import matching
from lthfunc.tracebacks import first_line
from lthfunc.trees.convert import with_initial_values
from lthfunc.trees.files import flatten, load_tree
from lthfunc.trees.leaf_names import first_names
from lthfunc.trees.model import Model


def with_weights(model: Model, name: str, source: str, *, trained: bool = False) -> Model:
    """The model with other initial values. name: of the architecture, as it was typed.

    source: a .safetensors file, of plain parameters and buffers or of a run (a ticket, a round's params); a state dict
    that torch.save wrote, of which only tensors are read; or for networks of torchvision and timm the name of their
    weights (``DEFAULT``, ``IMAGENET1K_V2``, timm's tag), if they have been downloaded before. Leaves of another shape,
    an output layer for other classes, are drawn from the seed; trained: the network is complete, so there may be none.

    Raises UserError where the file isn't there, can't be read or doesn't fit.
    """
    check_weights(name, source)
    if source.endswith((SUFFIX, *PICKLED)):
        values = _of_file(source)
    elif name.startswith("torchvision:"):
        values = _of_torchvision(name.partition(":")[2], source)
    else:
        values = _of_timm(name.partition(":")[2], source)
    leaves = dict((*model.evaluating.named_parameters(), *model.evaluating.named_buffers()))
    theirs = matching(values, first_names(model.evaluating))
    others = {each: leaf for each, leaf in values.items() if each not in theirs.values()}
    values = {**others, **{ours: values[each] for ours, each in theirs.items()}}
    for ours, leaf in leaves.items():
        if ours in values and values[ours].is_complex() and not leaf.is_complex():
            raise UserError(f"weights: {ours} is complex in {source}, and real in the network")
    return with_initial_values(model, values, trained=trained)


def check_weights(name: str, source: str) -> None:
    """Raise UserError where weights are neither a file that is there nor may be a name of torchvision's or timm's."""
    if source.endswith((SUFFIX, *PICKLED)):
        if not Path(source).is_file():
            raise invalid("weights", source, "a file that is there")
    elif not name.startswith(("torchvision:", "timm:")):
        kinds = ", ".join((SUFFIX, *PICKLED))
        raise invalid("weights", source, f"a file ({kinds}), or the name of torchvision's or timm's weights")


def _of_file(source: str) -> Mapping[str, Tensor]:
    """The tensors of a file; of a run's, its parameters and buffers."""
    if not source.endswith(SUFFIX):
        try:
            return import_checkpoint(Path(source)).tensors
        except UserError as error:
            raise type(error)(f"weights: {error}") from error
    tree, _ = load_tree(source)
    if isinstance(tree.get("params"), dict):
        tree = {**tree["params"], **tree.get("buffers", {})}
    return {name.replace("/", "."): leaf for name, leaf in flatten(tree).items()}  # names with a slash are nested


def _of_torchvision(name: str, weights: str) -> Mapping[str, Tensor]:
    import torchvision

    known = torchvision.models.get_model_weights(name)
    members = list(dict.fromkeys([*known.__members__, "DEFAULT"]))
    if weights not in members:
        raise unknown("weights", weights, members)
    url = (known.DEFAULT if weights == "DEFAULT" else known[weights]).url
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not file.is_file():
        raise UserError(f"weights: {weights!r} of {name} is not on this disk: put {url} into {file.parent}")
    return import_checkpoint(file).tensors


def _of_timm(name: str, weights: str) -> Mapping[str, Tensor]:
    import timm
    from huggingface_hub import try_to_load_from_cache

    tagged = name if weights == "DEFAULT" else f"{name.partition('.')[0]}.{weights}"
    try:
        config = timm.models.get_pretrained_cfg(tagged)
    except RuntimeError as error:  # a tag that it doesn't know
        raise invalid("weights", weights, f"DEFAULT, or a tag of {name} ({first_line(error)})") from error
    repository = getattr(config, "hf_hub_id", None)
    if not repository:
        raise invalid("weights", weights, f"a tag of {name} that the Hub has")
    file = try_to_load_from_cache(repository, "model.safetensors")
    if not isinstance(file, str):
        raise UserError(
            f"weights: {weights!r} of {name} is not on this disk: model.safetensors of {repository} belongs into the "
            "Hugging Face cache"
        )
    return load_tree(file)[0]
