"""Programs of tickets and compacted training on a GPU."""

from __future__ import annotations

import pytest
import torch

import lthfunc as lf
from lthfunc.training.loop import take_steps
from lthfunc.training.trainer import make_trainer
from lthfunc.trees import ops
from lthfunc.trees.types import Dataset

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("format", ["dense", "compact", "csr"])
def test_programs_agree_with_the_masked_network(format: str) -> None:
    from test_compact import broken

    model = lf.models.lenet300((1, 28, 28))
    ticket = ops.to_device(broken(model, 0.1, 0, dtype=torch.float32), "cuda")
    x = torch.randn(32, 1, 28, 28, device="cuda")
    program = lf.specialize(ticket, model, x, "cuda", format=format)
    wanted = model.evaluating.to("cuda")
    expected = torch.func.functional_call(wanted, (ticket.params, ticket.buffers), (x,))
    assert float((program(x) - expected).abs().max()) <= 1e-2 * float(expected.abs().max())


@pytest.mark.parametrize(("format", "select"), [("2:4", lf.n_of_m(2, 4)), ("block", lf.blocks(64, 64))])
def test_tensor_core_formats_agree_with_the_masked_layer(format: str, select: lf.Select) -> None:
    model = lf.from_module(torch.nn.Sequential(torch.nn.Linear(512, 256)))
    state = lf.prune(density=0.5, select=select, allocate=lf.uniform())(lf.init(model))
    half = {name: leaf.to("cuda", torch.bfloat16) for name, leaf in state.params.items()}
    ticket = lf.Ticket(half, {}, ops.to_device(state.masks, "cuda"))
    x = torch.randn(64, 512, device="cuda", dtype=torch.bfloat16)
    program = lf.specialize(ticket, model, x, "cuda", format=format)
    assert program.report.formats == {"0": format}
    assert program.report.difference <= 5e-2


def test_the_tuned_program_is_never_slower_than_dense() -> None:
    model = lf.from_module(torch.nn.Sequential(torch.nn.Linear(1024, 1024)))
    ticket = ops.to_device(lf.ticket(lf.prune(density=0.5)(lf.init(model))), "cuda")
    measured = lf.specialize(ticket, model, torch.randn(64, 1024, device="cuda"), "cuda").report.measured
    assert measured is not None
    assert min(measured.seconds.values()) <= measured.seconds["dense"]


def test_training_compact_on_the_device(few_digits: Dataset) -> None:
    from test_compact_training import dead_start

    model = lf.models.lenet300((1, 8, 8))
    start = dead_start(model, 0.1)
    data = ops.data_to_device(few_digits, "cuda")
    states = []
    for engine in ("eager", lf.compact_engine("eager")):
        trainer = make_trainer(model, data, optimizer=lf.sgd(0.05, momentum=0.9), batch_size=40, engine=engine)
        states.append(take_steps(trainer, ops.to_device(start, "cuda"), seed=0, until=20)[0])
    for name, leaf in states[0].params.items():
        torch.testing.assert_close(states[1].params[name], leaf, rtol=1e-3, atol=1e-4)
