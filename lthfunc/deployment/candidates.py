"""Candidate programs of a ticket's network: each a plain module and the function that runs it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lthfunc.catalog.deployment import FORMATS
from lthfunc.deployment.autotune import fastest_formats
from lthfunc.deployment.compaction.compact import Compacted, compact
from lthfunc.deployment.compiled import Compiled
from lthfunc.deployment.formats import MaskedLayer
from lthfunc.deployment.tuning_cache import TuningCache
from lthfunc.errors import UserError
from lthfunc.sparse.inference import sparse_program
from lthfunc.trees.layer_inputs import last_inputs
from lthfunc.trees.leaf_names import put_values
from lthfunc.trees.model import Model
from lthfunc.trees.ops import apply_masks
from lthfunc.trees.types import Masks, Ticket, TrainState

#: Layers that may have a format of their own.
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)


class Candidate(NamedTuple):
    """module: the plain network; run: the callable. formats: of its layers, by name. bytes: of its weights."""

    module: nn.Module
    run: Callable[[Tensor], Any]
    formats: dict[str, str]
    bytes: int


class PreparedCandidate(NamedTuple):
    """What candidates are made of.

    x: the sample, on the device. whole: the masked network. small: the compacted network for compiled code, or None.
    left_out: why a format cannot be used, by its name; filled on the way.
    """

    model: Model
    ticket: Ticket | TrainState
    x: Tensor
    whole: nn.Module
    small: Compacted | None
    left_out: dict[str, str]


def prepared(model: Model, ticket: Ticket | TrainState, x: Tensor) -> PreparedCandidate:
    """Mask and, where possible, compact the network."""
    left_out: dict[str, str] = {}
    small = None
    try:
        small = compact(model, ticket, tuple(x.shape[1:]))
    except UserError as error:
        left_out["compact"] = str(error)
    return PreparedCandidate(model, ticket, x, masked_module(model, ticket, x.device), small, left_out)


def masked_module(model: Model, ticket: Ticket | TrainState, device: torch.device | str = "cpu") -> nn.Module:
    """The model's module in evaluation mode, holding the ticket's masked weights."""
    module = copy.deepcopy(model.evaluating)
    return put_values(module, {**apply_masks(ticket.params, ticket.masks), **ticket.buffers}).to(device).eval()


def dense_candidate(m: PreparedCandidate) -> Candidate:
    """The masked network, compiled."""
    return _compiled(m, m.whole)


def compact_candidate(m: PreparedCandidate) -> Candidate | None:
    """Compacted and compiled; None where it cannot be compacted."""
    return None if m.small is None else _compiled(m, _on(m.small, m.x.device))


def _compiled(m: PreparedCandidate, module: nn.Module) -> Candidate:
    return Candidate(module, Compiled(module, m.model.name), {}, weight_bytes(module))


def sparse_candidate(m: PreparedCandidate) -> Candidate | None:
    """On the sparse engine, compacted where the engine can run that; None where it cannot run the network."""
    if m.x.device.type != "cpu":
        m.left_out["sparse"] = "the sparse engine runs on the CPU"
        return None
    tries = [(m.model, Ticket(m.ticket.params, m.ticket.buffers, m.ticket.masks))]
    if m.small is not None:
        with suppress(UserError):
            small = compact(m.model, m.ticket, tuple(m.x.shape[1:]), selecting=False)
            tries.insert(0, (small.model, Ticket(small.params, small.buffers, small.masks)))
    for network, its in tries:
        try:
            program = sparse_program(network, its)
            program(m.x)
        except UserError as error:
            m.left_out["sparse"] = str(error)
            continue
        m.left_out.pop("sparse", None)
        kept = sum(int(mask.sum()) for mask in its.masks.values())
        rest = sum(leaf.nbytes for name, leaf in its.params.items() if name not in its.masks)
        return Candidate(masked_module(network, its), program, {}, 8 * kept + rest)  # a value and an offset each
    return None


def layered_candidates(m: PreparedCandidate, format: str, memory: TuningCache) -> list[Candidate]:
    """Networks whose layers have formats of their own: compacted and, where the mask's pattern may matter, whole.

    format: a format of layers, for every layer that can take it, or "auto" for the fastest of each layer.
    """
    bases: list[tuple[nn.Module, Masks]] = []
    if m.small is not None and not (format in FORMATS and FORMATS[format].patterned):
        masks = {name: mask.to(m.x.device) for name, mask in m.small.masks.items()}
        bases.append((_on(m.small, m.x.device), masks))
    if not bases or format == "auto":
        bases.append((m.whole, m.ticket.masks))
    found = []
    for module, its in bases:
        layers = _layers_of(module, its, m.x)
        wanted = [format]
        if format == "auto":
            wanted = [name for name, each in FORMATS.items() if not each.whole and not each.rounds]
        able = {name: _able(layer, wanted, m.left_out) for name, layer in layers.items()}
        if format == "auto":
            chosen = fastest_formats(layers, able, memory)
        else:
            chosen = {name: formats[0] for name, formats in able.items() if formats}
        if chosen:
            replaced = copy.deepcopy(module)
            for name, kind in chosen.items():
                replaced.set_submodule(name, FORMATS.load(kind).make(layers[name]))
            formats = {name: chosen.get(name, "dense") for name in layers}
            found.append(Candidate(replaced, _eagerly(replaced), formats, weight_bytes(replaced)))
    return found


def _layers_of(module: nn.Module, masks: Masks, x: Tensor) -> dict[str, MaskedLayer]:
    """The masked layers by name, each with its input when the module is given `x`. Nothing is changed."""
    parts = {
        name: part for name, part in module.named_modules() if isinstance(part, _LAYERS) and f"{name}.weight" in masks
    }
    read = last_inputs(module, parts, lambda copied: copied(x.clone()))
    return {name: MaskedLayer(name, parts[name], masks[f"{name}.weight"], given) for name, given in read.items()}


def _able(layer: MaskedLayer, formats: list[str], left_out: dict[str, str]) -> list[str]:
    able = []
    for name in formats:
        reason = FORMATS.load(name).why_not(layer)
        if reason is None:
            able.append(name)
        else:
            left_out.setdefault(name, f"{name} {reason}: not for {layer.name}")
    return able


def _on(small: Compacted, device: torch.device) -> nn.Module:
    return copy.deepcopy(small.model.evaluating).to(device)


def _eagerly(module: nn.Module) -> Callable[[Tensor], Any]:
    changes = True  # unknown, at first

    def run(x: Tensor) -> Any:
        nonlocal changes
        given = x.clone() if changes else x
        before = given._version
        with torch.no_grad():
            outputs = module(given)
        changes = given._version != before
        return outputs

    return run


def weight_bytes(module: nn.Module) -> int:
    """Bytes of parameters and buffers, as they are stored."""
    tensors = {id(each): each for each in (*module.parameters(), *module.buffers())}
    return sum(_stored(each) for each in tensors.values())


def _stored(tensor: Tensor) -> int:
    if tensor.layout is torch.sparse_csr or tensor.layout is torch.sparse_bsr:
        return tensor.values().nbytes + tensor.col_indices().nbytes + tensor.crow_indices().nbytes
    inner = getattr(tensor, "__tensor_flatten__", None)
    if inner is not None:
        names, _ = inner()
        return sum(_stored(getattr(tensor, name)) for name in names)
    return tensor.nbytes


def why_missing(format: str, left_out: Mapping[str, str]) -> str:
    """Why a network cannot take a format."""
    return left_out.get(format) or left_out.get("compact") or "no layer has a mask"
