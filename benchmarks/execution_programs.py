"""The programs of a ticket that the benchmark of execution times, and its peers'."""

from __future__ import annotations

import functools
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.func import functional_call

import lthfunc as lf
from lthfunc.deployment.candidates import masked_module
from lthfunc.deployment.compiled import Compiled
from lthfunc.deployment.export.exportable import exportable_of
from lthfunc.deployment.export.graphs import onnx
from lthfunc.deployment.timing import TimedFunction
from lthfunc.errors import UserError
from lthfunc.trees.types import Ticket

from . import sparse_peers
from .execution_tickets import Masked
from .networks import Case

#: A variant's name, and the density of its ticket.
Variant = tuple[str, float]


def dense_programs(case: Case, dense: Ticket, x: Tensor) -> dict[Variant, Callable[[], Any]]:
    """The whole network, as it is and compiled."""
    whole = masked_module(case.model, dense, x.device).to(x.dtype)
    return {
        ("dense, eager", 1.0): functools.partial(whole, x),
        ("dense", 1.0): functools.partial(Compiled(whole, case.name), x),
    }


def programs_of(case: Case, item: Masked, x: Tensor) -> dict[Variant, Callable[[], Any]]:
    """The masked network, each possible format, and the tuned program, by the ticket's density."""
    kind = f", {item.kind}" if item.kind else ""
    found: dict[Variant, Callable[[], Any]] = {}
    ticket = _like(item.ticket, x)
    if not item.kind:
        found["masked, eager", item.density] = _masked(case, ticket, x)
    forms = {"": ("compact", "sparse", "csr"), "units": ("compact",), "blocks": ("block",), "2:4": ("2:4",)}[item.kind]
    for form in forms:
        try:
            program = lf.specialize(ticket, case.model, x, x.device, format=form)
        except UserError as error:
            print(f"{case.name}{kind}: {error}", file=sys.stderr)
            continue
        found[f"{form}{kind if form == 'compact' else ''}", item.density] = functools.partial(program, x)
    tuned = lf.specialize(ticket, case.model, x, x.device)
    found[f"tuned{kind}", item.density] = functools.partial(tuned, x)
    return found


def _like(ticket: Ticket, x: Tensor) -> Ticket:
    """The ticket on the inputs' device, in their dtype."""

    def moved(leaf: Tensor) -> Tensor:
        return leaf.to(x.device, x.dtype) if leaf.is_floating_point() else leaf.to(x.device)

    return Ticket(*({name: moved(leaf) for name, leaf in tree.items()} for tree in ticket))


def _masked(case: Case, ticket: Ticket, x: Tensor) -> Callable[[], Any]:
    """As most libraries run a ticket: masks multiplied in at every call."""
    module = masked_module(case.model, ticket, x.device).to(x.dtype)
    params: dict[str, Tensor] = dict(module.named_parameters())
    masks = {name: mask.to(x.dtype) for name, mask in ticket.masks.items()}

    def call() -> Any:
        masked = {name: leaf * masks[name] if name in masks else leaf for name, leaf in params.items()}
        return functional_call(module, masked, (x,))

    return call


def peers_of(
    case: Case, tickets: Sequence[Masked], dense: Ticket, x: Tensor, threads: int
) -> dict[Variant, TimedFunction]:
    """CSR products of scipy where all layers are linear, and ONNX Runtime; of the dense network as well."""
    found: dict[Variant, TimedFunction] = {}
    if all(mask.ndim == 2 for mask in dense.masks.values()) and len(dense.masks) > 1:
        for item in tickets:
            if not item.kind:
                state = lf.init(case.model)._replace(params=item.ticket.params, masks=item.ticket.masks)
                found["scipy.sparse CSR", item.density] = sparse_peers.scipy_csr(state, x)
    with tempfile.TemporaryDirectory() as folder:
        for density, ticket in ((1.0, dense), *((item.density, item.ticket) for item in tickets if not item.kind)):
            path = Path(folder) / "network.onnx"
            try:
                onnx(exportable_of(case.model, ticket, case.shape), path)
            except UserError as error:
                print(f"{case.name}: {error}", file=sys.stderr)
                break
            found["ONNX Runtime", density] = sparse_peers.onnx_runtime(path, x, threads)
    return found
