"""The fastest program of a ticket on a device: every form measured there, and dense unless something is faster."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lthfunc.compacting.network import Compacted, check_ticket, compact
from lthfunc.errors import UserError, invalid, unknown
from lthfunc.execution.compiled import Compiled
from lthfunc.execution.cost import cost, flops_of
from lthfunc.execution.formats import LAYER_FORMATS, Layer
from lthfunc.execution.layers import layers_of, with_layers
from lthfunc.execution.names import FORMATS
from lthfunc.execution.program import Measured, Program, Report
from lthfunc.execution.timing import Run, in_turn, repeated
from lthfunc.execution.tuning import Tunings, layer_key, program_key
from lthfunc.sparse.inference import sparse_program
from lthfunc.trees.model import Model
from lthfunc.trees.ops import apply_masks, clone
from lthfunc.trees.types import Masks, Ticket, TrainState

#: A form must be faster than dense by so much, in so many of the turns.
_MARGIN, _MOST_TURNS = 0.97, 0.75
_LAYER_SECONDS, _LAYER_REPEATS = 0.01, 5
_SECONDS, _REPEATS = 0.05, 9
#: Differences that rounding makes, relative to the largest output: in float32 on a CPU; with TF32 and half precision.
_TOLERANCE, _COARSE = 1e-4, 5e-2
#: Formats of a mask's own pattern, which compacting would break up.
_PATTERNED = ("block", "2:4")


class _Form(NamedTuple):
    """A way to run the network. module: plain; run: what is called. formats: of its layers."""

    module: nn.Module
    run: Callable[[Tensor], Tensor]
    formats: dict[str, str]


def specialize(
    ticket: Ticket | TrainState,
    model: Model,
    sample: Tensor,
    device: torch.device | str = "cpu",
    *,
    format: str = "auto",
    tunings: Path | None = None,
) -> Program:
    """A program of the ticket's network, of equal outputs.

    sample: a batch of inputs as the network takes them; its size is what the program is tuned for. format: "auto"
    measures every form, and every format of each layer, and takes the fastest, dense unless another is faster by 3 %;
    or the name of a form or of a layer's format (names.py), used for every layer that can take it.
    tunings: a file that keeps what was measured (``tunings_file()`` for the user's own).

    Outputs differ from the masked network's by rounding: at most 1e-4 of the largest output in float32 on a CPU, 5e-2
    with TF32 or half precision; "int8" rounds weights and activations, as the report's `difference` says. A program
    that differs by more is not returned.

    Raises UserError where the ticket doesn't fit the model, with the first leaf that differs; for a format that the
    network or device cannot take, with the reason.

        program = lf.specialize(ticket, model, images[:64])
        logits = program(images[:64])
    """
    if format not in FORMATS:
        raise unknown("--format", format, FORMATS)
    check_ticket(model, ticket)
    device = torch.device(device)
    x = sample.to(device)
    whole = masked_module(model, ticket, device)
    left_out: dict[str, str] = {}
    small, small_lists = _compacted(model, ticket, x, left_out)
    compact_module = small and _on(small, device)
    memory = Tunings(tunings)
    forms: dict[str, _Form] = {"dense": _Form(whole, Compiled(whole, model.name), {})}
    if format in ("auto", "compact") and compact_module is not None:
        forms["compact"] = _Form(compact_module, Compiled(compact_module, model.name), {})
    if format in ("auto", "sparse"):
        _add_sparse(forms, left_out, small_lists, model, ticket, x)
    if format in ("auto", *LAYER_FORMATS):
        for form in _in_layers(whole, small if format not in _PATTERNED else None, ticket.masks, x, format, memory,
                               left_out):  # fmt: skip
            forms["layers of the whole" if "layers" in forms else "layers"] = form
    wanted = "layers" if format in LAYER_FORMATS else format
    if format != "auto" and wanted not in forms:
        raise invalid("--format", format, f"another for this network, since {_reason(format, left_out)}")
    measured = None
    if format == "auto":
        chosen, measured = _fastest(forms, ticket.masks, x, memory)
    else:
        chosen = wanted
    form = forms[chosen]
    report = Report(
        chosen, form.formats, left_out, cost(model, ticket.params, ticket.masks, tuple(x.shape[1:])),
        None if small is None else flops_of(small.model.evaluating, tuple(x.shape[1:])),
        (4 * sum(leaf.numel() for leaf in ticket.params.values()), _bytes(chosen, form, small, ticket)),
        _difference(form, whole, x, exact=format != "int8"), measured,
    )  # fmt: skip
    return Program(form.module, form.run, report)


def masked_module(model: Model, ticket: Ticket | TrainState, device: torch.device | str = "cpu") -> nn.Module:
    """The model's module in evaluation mode with the ticket's masked weights in it."""
    module = copy.deepcopy(model.evaluating)
    leaves = clone({**apply_masks(ticket.params, ticket.masks), **ticket.buffers})
    module.load_state_dict(leaves, strict=False, assign=True)  # so that it has their dtype
    return module.to(device).eval()


def _on(small: Compacted, device: torch.device) -> nn.Module:
    return copy.deepcopy(small.model.evaluating).to(device)


def _compacted(
    model: Model, ticket: Ticket | TrainState, x: Tensor, left_out: dict[str, str]
) -> tuple[Compacted | None, Compacted | None]:
    """(for compiled code, for lists), or the reason why not."""
    try:
        shape = tuple(x.shape[1:])
        return compact(model, ticket, shape), compact(model, ticket, shape, selecting=False)
    except UserError as error:
        left_out["compact"] = str(error)
        return None, None


def _add_sparse(
    forms: dict[str, _Form], left_out: dict[str, str], small: Compacted | None, model: Model,
    ticket: Ticket | TrainState, x: Tensor,
) -> None:  # fmt: skip
    if x.device.type != "cpu":
        left_out["sparse"] = "the sparse engine runs on the CPU"
        return
    tries = [(model, Ticket(ticket.params, ticket.buffers, ticket.masks))]
    if small is not None:
        tries.insert(0, (small.model, Ticket(small.params, small.buffers, small.masks)))
    for network, its in tries:
        try:
            program = sparse_program(network, its)
            program(x)
        except UserError as error:
            left_out["sparse"] = str(error)
            continue
        forms["sparse"] = _Form(masked_module(network, its), program, {})
        left_out.pop("sparse", None)
        return


def _in_layers(
    whole: nn.Module, small: Compacted | None, masks: Masks, x: Tensor, format: str, memory: Tunings,
    left_out: dict[str, str],
) -> list[_Form]:  # fmt: skip
    """Networks whose layers have formats of their own: compacted, and (where patterns may matter) whole."""
    bases: list[tuple[nn.Module, Masks]] = []
    if small is not None:
        bases.append((_on(small, x.device), {name: mask.to(x.device) for name, mask in small.masks.items()}))
    if small is None or format == "auto":
        bases.append((whole, masks))
    found = []
    for module, its in bases:
        layers = layers_of(module, its, x)
        wanted = (format,) if format in LAYER_FORMATS else tuple(name for name in LAYER_FORMATS if name != "int8")
        able = {name: _able(layer, wanted, left_out) for name, layer in layers.items()}
        if format == "auto":
            chosen = _fastest_formats(layers, able, memory)
        else:
            chosen = {name: formats[0] for name, formats in able.items() if formats}
        if chosen:
            new = {name: LAYER_FORMATS[form].make(layers[name]) for name, form in chosen.items()}
            replaced = with_layers(module, new)
            formats = {name: chosen.get(name, "dense") for name in layers}
            found.append(_Form(replaced, _eagerly(replaced), formats))
    return found


def _able(layer: Layer, formats: tuple[str, ...], left_out: dict[str, str]) -> list[str]:
    able = []
    for name in formats:
        reason = LAYER_FORMATS[name].why_not(layer)
        if reason is None:
            able.append(name)
        else:
            left_out.setdefault(name, f"{layer.name}: {reason}")
    return able


def _fastest_formats(layers: Mapping[str, Layer], able: Mapping[str, list[str]], memory: Tunings) -> dict[str, str]:
    """The format of each layer that is faster than the layer as it is."""
    chosen = {}
    for name, layer in layers.items():
        keys = {form: layer_key(layer, form) for form in ("dense", *able[name])}
        if any(memory.get(key) is None for key in keys.values()):
            runs = {form: _layer_run(layer, form) for form in keys}
            with torch.no_grad():
                rates = in_turn(runs, seconds=_LAYER_SECONDS, repeats=_LAYER_REPEATS, device=str(layer.device))
            memory.put({keys[form]: 1 / statistics.median(found) for form, found in rates.items()})
        seconds = {form: memory.get(key) or 0.0 for form, key in keys.items()}
        best = min(seconds, key=lambda form: seconds[form])
        if best != "dense" and seconds[best] < _MARGIN * seconds["dense"]:
            chosen[name] = best
    return chosen


def _layer_run(layer: Layer, form: str) -> Run:
    module = layer.module if form == "dense" else LAYER_FORMATS[form].make(layer)
    return repeated(lambda: module(layer.x))


def _fastest(forms: Mapping[str, _Form], masks: Masks, x: Tensor, memory: Tunings) -> tuple[str, Measured]:
    """(the fastest form, what was measured)."""
    keys = {name: program_key(f"{form.module}{form.formats}", masks, x, name) for name, form in forms.items()}
    won = {name: program_key("won", masks, x, name) for name in forms}
    if any(memory.get(key) is None for key in (*keys.values(), *won.values())):
        runs = {name: repeated(lambda form=form: form.run(x)) for name, form in forms.items()}  # type: ignore[misc]
        with torch.no_grad():
            rates = in_turn(runs, seconds=_SECONDS, repeats=_REPEATS, device=str(x.device))
        memory.put({keys[name]: 1 / statistics.median(found) for name, found in rates.items()})
        turns = {
            name: sum(a > b for a, b in zip(found, rates["dense"], strict=True)) / _REPEATS
            for name, found in rates.items()
        }
        memory.put({won[name]: share for name, share in turns.items()})
    seconds = {name: memory.get(key) or 0.0 for name, key in keys.items()}
    faster = [
        name for name in forms
        if seconds[name] < _MARGIN * seconds["dense"] and (memory.get(won[name]) or 0) >= _MOST_TURNS
    ]  # fmt: skip
    return min(faster, key=lambda name: seconds[name], default="dense"), Measured(seconds, len(x))


def _eagerly(module: nn.Module) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        with torch.no_grad():
            outputs: Tensor = module(x)
        return outputs

    return run


def _difference(form: _Form, whole: nn.Module, x: Tensor, *, exact: bool) -> float:
    with torch.no_grad():
        wanted, got = whole(x).float(), form.run(x).float()
    largest = float(wanted.abs().max()) or 1.0
    difference = float((wanted - got).abs().max()) / largest
    limit = _TOLERANCE if x.device.type == "cpu" and x.dtype == torch.float32 else _COARSE
    if exact and not difference <= limit:
        raise RuntimeError(f"the program's outputs differ from the masked network's by {difference:.1e} of the largest")
    return difference


def _bytes(chosen: str, form: _Form, small: Compacted | None, ticket: Ticket | TrainState) -> int:
    """Of the weights as the program holds them."""
    if chosen == "sparse":
        masks = small.masks if small is not None else ticket.masks
        params = small.params if small is not None else ticket.params
        kept = sum(int(mask.sum()) for mask in masks.values())
        rest = sum(leaf.numel() for name, leaf in params.items() if name not in masks)
        return 8 * kept + 4 * rest  # a value and an offset each
    tensors = {id(each): each for each in (*form.module.parameters(), *form.module.buffers())}
    return sum(_stored(each) for each in tensors.values())


def _stored(tensor: Tensor) -> int:
    if tensor.layout is torch.sparse_csr or tensor.layout is torch.sparse_bsr:
        return tensor.values().nbytes + tensor.col_indices().nbytes + tensor.crow_indices().nbytes
    inner = getattr(tensor, "__tensor_flatten__", None)
    if inner is not None:
        names, _ = inner()
        return sum(_stored(getattr(tensor, name)) for name in names)
    return tensor.nbytes


def _reason(format: str, left_out: Mapping[str, str]) -> str:
    return left_out.get(format) or left_out.get("compact") or "no layer has a mask"
