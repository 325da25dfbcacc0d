"""The fastest program of a ticket on a device: all candidates are measured, and dense wins unless one is faster."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor, nn

from lthfunc.arguments import public
from lthfunc.catalog.deployment import FORMATS
from lthfunc.deployment.accuracy import difference
from lthfunc.deployment.autotune import fastest
from lthfunc.deployment.candidates import Candidate, PreparedCandidate, layered_candidates, prepared, why_missing
from lthfunc.deployment.compiled import Compiled
from lthfunc.deployment.cost import cost
from lthfunc.deployment.specialized_module import ProgramReport, SpecializedModule
from lthfunc.deployment.tuning_cache import TuningCache, program_keys
from lthfunc.errors import UserError, failing_as_options, invalid
from lthfunc.trees.flops import flops_of
from lthfunc.trees.model import Model
from lthfunc.trees.module_errors import taking_inputs
from lthfunc.trees.ops import check_device
from lthfunc.trees.types import Ticket, TrainState

#: Differences due to rounding, relative to the largest output: in float32 on a CPU; with TF32 or half precision.
_TOLERANCE, _COARSE = 1e-4, 5e-2


@public
def specialize(
    ticket: Ticket | TrainState,
    model: Model,
    sample: Tensor,
    device: torch.device | str = "cpu",
    *,
    format: str = "auto",
    tunings: Path | None = None,
    fresh: bool = False,
    beside: Collection[str] = (),
) -> SpecializedModule:
    """Make the fastest program that computes a ticket's network on a device.

    ticket: trained params, buffers and masks of `model`. sample: a batch of inputs (n, ...) as the network takes them;
    the program is tuned for its size. device: where the program runs. format: "auto" measures all whole-network formats
    and all formats of each layer, and takes the fastest (dense unless another is 3 % faster); or the name of one, which
    every layer that can take it then has. tunings: a file that keeps measured times, such as ``tunings_file()``; by
    default none are kept. fresh: measure again even where the file has a time. beside: formats of other runtimes
    ("onnxruntime") that are timed in the same turns, to compare with, and not chosen.

    Returns a `SpecializedModule`: call it on a batch; its `report` says what it is and costs. Its outputs differ from
    the masked network's by at most 1e-4 of the largest output in float32 on a CPU, and by 5e-2 with TF32 or half
    precision. Only "int8" may differ by more, since it rounds; `report.difference` says by how much.

    Raises UserError where the ticket doesn't fit the model, and for a format that the network or device cannot take.

    >>> import torch, lthfunc as lf
    >>> model = lf.models.lenet300()
    >>> ticket = lf.ticket(lf.prune(density=0.1)(lf.init(model)))
    >>> x = torch.zeros(8, 1, 28, 28)
    >>> program = lf.specialize(ticket, model, x, format="csr")
    >>> program(x).shape, program.report.formats
    (torch.Size([8, 10]), {'fc1': 'csr', 'fc2': 'csr', 'fc3': 'csr'})
    """
    with failing_as_options({FORMATS.option: "format"}):
        FORMATS.check(format)
    check_device(device)
    if not len(sample):
        raise invalid("sample", tuple(sample.shape), "one example or more")
    m = prepared(model, ticket, sample.to(device))
    with taking_inputs(model.name, m.x.shape[1:], model.evaluating), torch.no_grad():
        m.whole(m.x.clone())
    x, shape = m.x, tuple(sample.shape[1:])
    memory = TuningCache(None if tunings is None else Path(tunings), fresh=fresh)
    wholes = [name for name, entry in FORMATS.items() if entry.whole]
    tried = [name for name in wholes if not FORMATS[name].peer or name in beside] if format == "auto" else [format]
    found: dict[str, Candidate | None] = {name: FORMATS.load(name)(m) for name in wholes if name in ("dense", *tried)}
    if format not in wholes:
        found |= dict(zip(("layers", "layers of the whole"), layered_candidates(m, format, memory), strict=False))
    forms = {name: form for name, form in found.items() if form is not None}
    chosen, measured = format if format in ("auto", *wholes) else "layers", None
    if format == "auto":
        codes = {name: f"{form.module}{form.formats}" for name, form in forms.items()}
        keys = program_keys(codes, ticket.masks, x)
        runs = {
            name: form.run for name, form in forms.items()
            if name not in beside or memory.get(keys[name]) or _runs(form, name, m)
        }  # fmt: skip
        chosen, measured = fastest(runs, keys, x, memory, beside)
    elif chosen not in forms:
        raise invalid("format", format, f"another for this network, since {why_missing(format, m.left_out)}")
    form, theory = forms[chosen], cost(model, ticket.params, ticket.masks, shape)
    report = ProgramReport(
        chosen, form.formats, m.left_out, theory,
        None if m.small is None else flops_of(m.small.model.evaluating, shape, tokens=model.tokens),
        (theory.bytes[0], form.bytes),
        _difference(form, m.whole, x, exact=not (format in FORMATS and FORMATS[format].rounds)), measured,
    )  # fmt: skip
    if isinstance(form.run, Compiled) and form.run.why_eager:
        m.left_out["compiled code"] = form.run.why_eager
    return SpecializedModule(form.module, form.run, report)


def _runs(form: Candidate, name: str, m: PreparedCandidate) -> bool:
    """Whether a form of another runtime can be made; if not, the reason is noted."""
    try:
        form.run(m.x)
    except UserError as error:
        m.left_out[name] = str(error)
    return name not in m.left_out


def _difference(form: Candidate, whole: nn.Module, x: Tensor, *, exact: bool) -> float:
    """Of the form's outputs from the masked network's, relative to the largest."""
    with torch.no_grad():
        found = difference(form.run(x), whole(x.clone()))
    limit = _TOLERANCE if x.device.type == "cpu" and x.dtype != torch.bfloat16 else _COARSE
    if exact and not found <= limit:
        raise RuntimeError(f"the program's outputs differ from the masked network's by {found:.1e} of the largest")
    return found
