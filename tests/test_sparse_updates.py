"""Optimisers and their parts as instructions of the machine: what they make of gradients, on any number of threads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.sparse.capture import captured
from lthfunc.sparse.kernels import build
from lthfunc.sparse.machine_state import load_optimizer, optimizer_after
from lthfunc.sparse.program import Epilogue, Stored, program_of
from lthfunc.sparse.updates import machine_numbers, pythons_parts
from lthfunc.sparse.workspace import Workspace
from lthfunc.training.accumulation import parts_of_batch
from lthfunc.trees.ops import leaves, tree_map
from lthfunc.trees.types import TrainState

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))

#: Large enough to be shared by four threads, and with biases between the matrices.
MODEL = lf.from_module(nn.Sequential(nn.Linear(60, 500), nn.ReLU(), nn.Linear(500, 30)))
RATES = lf.cosine(0.05, 9)
OPTIMIZERS = {
    "sgd": lf.sgd(RATES, weight_decay=0.1, decays=lf.is_matrix),
    "momentum": lf.sgd(RATES, 0.9, nesterov=True, weight_decay=0.1),
    "adam": lf.adam(RATES, weight_decay=0.1, decays=lf.all_but("0.*")),
    "adamw": lf.adamw(RATES, weight_decay=0.1),
    "clipped by norm": lf.chain(lf.clip_by_global_norm(1.5), lf.sgd(RATES, 0.9)),
    "within the norm": lf.chain(lf.clip_by_global_norm(1e6), lf.sgd(RATES, 0.9)),
    "clipped by value": lf.chain(lf.clip_by_value(0.7), lf.sgd(RATES)),
    "averaged": lf.chain(lf.sgd(RATES), lf.ema(0.8)),
    "averaged from the first": lf.chain(lf.sgd(RATES), lf.ema(0.8, debias=False)),
    "everything": lf.chain(
        *(lf.clip_by_value(2.0), lf.accumulate(3), lf.clip_by_global_norm(1.5)),
        lf.adamw(RATES, weight_decay=0.1, decays=lf.is_matrix),
        lf.ema(0.8),
    ),
}

#: The powers of Adam's betas are float32: 1 - 0.999 is known to 3e-5 of itself, its root to half of that, and so is the
#: length of the first steps, on every weight.
BIASED = 4 * 0.05 * 1.5e-5


def ticket() -> TrainState:
    return lf.prune(density=0.95, score=lf.random_scores(0))(lf.init(MODEL))


def updated(optimizer: lf.Optimizer, gradients: list[Tensor], threads: int) -> TrainState:
    """By the machine: a gradient for each step, over all survivors. Each part of a batch has the same one."""
    build.load_kernels()
    state, numbers = lf.with_optimizer(ticket(), optimizer), machine_numbers(optimizer)
    assert numbers is not None
    program = program_of(
        captured(MODEL, (60,), training=True), state.params, {}, state.masks, batch=4,
        stored=Stored((60,), torch.float32), epilogue=Epilogue(update=numbers),
    )  # fmt: skip
    workspace = Workspace(program, state.params, {})
    load_optimizer(workspace, numbers, state.opt)
    parts = parts_of_batch(optimizer)
    x, y = torch.zeros(1, 4 * parts, 60), torch.zeros(1, 4 * parts, dtype=torch.int64)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for step, gradient in enumerate(gradients):
            workspace.gradients.copy_(gradient)
            workspace.run(x, y, 1, step, 0, (program.backward, workspace.end), parts)
    finally:
        torch.set_num_threads(before)
    opt = optimizer_after(workspace, numbers, state.opt, {}, len(gradients))
    return state._replace(params=workspace.dense(workspace.values), opt=opt)


def expected(optimizer: lf.Optimizer, gradients: list[Tensor]) -> TrainState:
    """By Python, on dense float64 leaves."""
    state = tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, ticket())
    params, opt = state.params, lf.with_optimizer(state, optimizer).opt
    packed = lf.pack(ticket().params, state.masks)
    sizes = [packed.values[name].numel() for name in params]
    for step, gradient in enumerate(gradients):
        leaves = dict(zip(params, torch.split(gradient.double(), sizes), strict=True))
        grads = lf.unpack(packed._replace(values=leaves))
        params, opt = optimizer.update(grads, opt, params, torch.tensor(step))
    return state._replace(params=params, opt=opt)


def drawn(count: int = 4) -> list[Tensor]:
    size = sum(leaf.numel() for leaf in lf.pack(ticket().params, ticket().masks).values.values())
    assert size > 4 * 8192
    return list(torch.randn(count, size, generator=torch.Generator().manual_seed(1)) / 50)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_update_is_pythons_on_any_number_of_threads(name: str) -> None:
    optimizer, gradients = OPTIMIZERS[name], [gradient * (step + 1) for step, gradient in enumerate(drawn())]
    found = [updated(optimizer, gradients, threads) for threads in (1, 2, 3)]
    assert lf.same_bits(found[0], found[1])
    assert lf.same_bits(found[0], found[2])
    theirs = expected(optimizer, gradients)
    for tree in ("params", "opt"):
        pairs = zip(leaves(getattr(found[0], tree)), leaves(getattr(theirs, tree)), strict=True)
        for ours, wanted in pairs:
            torch.testing.assert_close(ours.double(), wanted.double(), rtol=2e-5, atol=BIASED)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", [lf.clip_by_global_norm(1.0), lf.clip_by_value(1.0)], ids=["norm", "value"])
def test_what_is_not_finite_is_clipped_as_in_pytorch(part: lf.Part, bad: float) -> None:
    """Values bring infinity back; what is no number stays none, and a norm that is none spreads to all survivors."""
    optimizer, (gradient,) = lf.chain(part, lf.sgd(0.1)), drawn(1)
    gradient[::1000] = bad
    ours, theirs = updated(optimizer, [gradient], 1), expected(optimizer, [gradient])
    for name, leaf in theirs.params.items():
        there = ours.masks.get(name, torch.ones_like(leaf, dtype=torch.bool))
        pair = ours.params[name].double()[there], leaf[there]
        torch.testing.assert_close(*pair, rtol=2e-5, atol=1e-6, equal_nan=True)


def test_what_the_machine_leaves_to_python_is_named() -> None:
    assert pythons_parts(OPTIMIZERS["everything"]) == []
    assert pythons_parts(lf.chain(lf.sam(), lf.lion(0.1), lf.swa(3), lf.ema(0.9))) == ["sam", "", "swa"]
    assert machine_numbers(lf.lion(0.1)) is None


def noisy(inputs: Tensor, key: Tensor, first: int = 0) -> Tensor:
    return inputs + 0.1 * (key % 7)


def own_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return lf.cross_entropy(outputs, targets)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("how", ["machine", "augmented", "own loss"])
def test_clocks_go_on_once_a_step(few_digits: lf.Dataset, how: str, parts: int) -> None:
    """Of Adam and of an average, in float64, whoever computes the inputs and the loss."""
    model = lf.from_module(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    optimizer = lf.chain(lf.accumulate(parts), lf.adam(0.01), lf.ema(0.9, debias=False))
    given: dict[str, dict[str, Any]] = {"machine": {}, "augmented": {"augment": noisy}, "own loss": {"loss": own_loss}}
    more = given[how]
    found = []
    for engine in (lf.sparse_engine, "eager"):
        train = lf.train(model, few_digits, optimizer=optimizer, steps=7, batch_size=20, engine=engine, **more)
        found.append(train(lf.init(model)))
    _, adam, average = found[0].opt.parts
    assert adam.powers.tolist() == pytest.approx([0.9**8, 0.999**8], rel=1e-14)
    assert float(average.power) == pytest.approx(0.9**8, rel=1e-14)
    for ours, theirs in zip(leaves(found[0]), leaves(found[1]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-5)
