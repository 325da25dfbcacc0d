"""Recurrent layers on the sparse engine, against float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from sparse_programs import both, check, kernels  # noqa: F401
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.sparse.capture import captured
from lthfunc.sparse.cost_model import is_faster
from lthfunc.sparse.kernels import build
from lthfunc.sparse.program import Epilogue, Stored, program_of
from lthfunc.sparse.workspace import Workspace
from lthfunc.trees.model import apply_evaluating

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))


class Recurrent(nn.Module):
    """A linear layer of each step, a recurrent layer, and three classes of its last outputs, or of all."""

    def __init__(self, kind: str, steps: int, units: int, *, last: bool = False, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(3, 5)
        self.layer = getattr(nn, kind)(5, units, batch_first=True, **options)
        width = units * (2 if options.get("bidirectional") else 1)
        self.head, self.last = nn.Linear(width if last else steps * width, 3), last

    def forward(self, x: Tensor) -> Tensor:
        outputs, _ = self.layer(torch.tanh(self.first(x)))
        found: Tensor = self.head(outputs[:, -1] if self.last else outputs.flatten(1))
        return found


@pytest.mark.parametrize("examples", [6, pytest.param(80, marks=pytest.mark.long)])
def test_recurrent_layers(examples: int) -> None:
    @settings(max_examples=examples, deadline=None, derandomize=True)
    @given(
        kind=st.sampled_from(["LSTM", "GRU", "RNN"]),
        steps=st.integers(1, 6),
        units=st.integers(1, 9),
        layers=st.integers(1, 2),
        bidirectional=st.booleans(),
        bias=st.booleans(),
        last=st.booleans(),
        batch=st.sampled_from([1, 16, 35, 90]),
        density=st.sampled_from([0.0, 0.3, 1.0]),
    )
    def holds(
        kind: str, steps: int, units: int, layers: int, bidirectional: bool, bias: bool, last: bool, batch: int,
        density: float,
    ) -> None:  # fmt: skip
        module = Recurrent(
            kind, steps, units, last=last, num_layers=layers, bidirectional=bidirectional, bias=bias
        )  # fmt: skip
        check(module, (steps, 3), batch, density)

    holds()


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_both_directions_of_two_layers(kind: str) -> None:
    check(Recurrent(kind, 5, 7, num_layers=2, bidirectional=True), (5, 3), 37)


def test_rectified_states() -> None:
    check(Recurrent("RNN", 4, 6, nonlinearity="relu"), (4, 3), 20)


def test_steps_first_and_inputs_that_need_a_gradient() -> None:
    """A layer on (steps, batch, features), after another one, with dropout that drops nothing."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.one = nn.GRU(3, 5, 2, batch_first=True, dropout=0.0)
            self.two, self.head = nn.LSTM(5, 4), nn.Linear(5 * 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            outputs, _ = self.two(self.one(x)[0].transpose(0, 1))
            found: Tensor = self.head(outputs.permute(1, 0, 2).flatten(1))
            return found

    check(Net(), (5, 3), 18)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_a_layer_that_is_called_twice(kind: str) -> None:
    """On all steps, and on one alone, whose state has no weights' gradient."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer, self.head = getattr(nn, kind)(3, 3, batch_first=True), nn.Linear(3 * 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            one = self.layer(torch.tanh(x[:, :1]))[0]  # first, so that its gradient comes last
            found: Tensor = self.head(torch.cat([self.layer(x)[0], one], 1).flatten(1))
            return found

    check(Net(), (3, 3), 18)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_any_number_of_threads_gives_the_same_bits(kind: str) -> None:
    module, before = Recurrent(kind, 6, 40, bidirectional=True), torch.get_num_threads()
    _, expected, *_ = both(module, (6, 3), 70, 0.5)
    try:
        torch.set_num_threads(2)
        _, found, *_ = both(module, (6, 3), 70, 0.5)
    finally:
        torch.set_num_threads(before)
    for name, gradient in expected.items():
        assert torch.equal(gradient, found[name]), name


@pytest.mark.parametrize("batch", [1, 33])
def test_inference(batch: int) -> None:
    model = lf.from_module(Recurrent("GRU", 7, 6, num_layers=2, dropout=0.5))
    state = lf.prune(density=0.5)(lf.init(model, seed=1))
    x = torch.randn(batch, 7, 3)
    expected = apply_evaluating(model, state.params, state.buffers, x)
    torch.testing.assert_close(lf.sparse_program(model, state)(x), expected, rtol=1e-5, atol=1e-5)


def test_a_network_of_characters_trains_as_the_eager_engine_trains_it() -> None:
    text = torch.randint(0, 11, (40, 9), generator=torch.Generator().manual_seed(0))
    x, y = text[:, :-1].contiguous(), text[:, 1:].contiguous()
    data = lf.data.from_tensors("text", (x, y), (x[:8], y[:8]), val=6, classes=11)
    model = lf.models.build("lstm", (8,), 11, {"width": "12"}, "text")
    assert {"lstm.weight_ih_l0", "lstm.weight_hh_l1"} < set(model.prunable)
    start = lf.prune(density=0.3)(lf.init(model, seed=2))
    eager, ours = (
        lf.train(model, data, optimizer=lf.adam(1e-2), steps=15, batch_size=17, engine=engine)(start)
        for engine in ("eager", lf.sparse_engine)
    )
    for name, leaf in eager.params.items():
        torch.testing.assert_close(ours.params[name], leaf, rtol=1e-3, atol=1e-5)
        assert not ours.params[name][~start.masks[name]].any() if name in start.masks else True


def test_auto_takes_sparse_recurrent_layers_alone() -> None:
    model = lf.models.build("lstm", (64,), 65, {}, "text")
    state = lf.init(model)
    for density, wanted in ((0.1, True), (0.95, False)):
        masks = lf.prune(density=density, score=lf.random_scores(0))(state).masks
        assert is_faster(model, (64,), masks) is wanted


class Refused(nn.Module):
    """A recurrent layer, and a part of what it gives."""

    def __init__(self, make: Callable[[], nn.Module], call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.call, self.head = make(), call, nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.call(self.layer, x).flatten(1))
        return found


@pytest.mark.parametrize(
    ("make", "call", "words"),
    [
        (lambda: nn.LSTM(3, 4, batch_first=True), lambda layer, x: layer(x)[1][0][-1], "number 1, which the machine"),
        (lambda: nn.LSTM(3, 4, batch_first=True, proj_size=2), lambda layer, x: layer(x)[0], "lstm with projections"),
        (
            lambda: nn.GRU(3, 4, batch_first=True), lambda layer, x: layer(x, torch.ones(1, len(x), 4))[0],
            "no rule for ones",
        ),
    ],
)  # fmt: skip
def test_refusals(make: Any, call: Any, words: str) -> None:
    module = Refused(make, call)
    module(torch.zeros(2, 5, 3))
    model = lf.from_module(module)
    with pytest.raises(lf.UserError, match=words):
        lf.sparse_program(model, lf.init(model))(torch.zeros(2, 5, 3))


def test_dropout_between_layers_keeps_the_mean_and_its_gradient() -> None:
    """Layers that hand on what is above zero show the mask: others of their numbers are left out in each step."""
    share, steps, width, batch = 0.25, 5, 4, 100
    shape = (steps, width)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.RNN(width, width, 2, nonlinearity="relu", bias=False, batch_first=True, dropout=share)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.layer(x)[0].flatten(1)
            return found

    model = lf.from_module(Net(), warn=False)
    params, buffers = model.init(0)
    params = {name: torch.eye(width) * float("weight_ih" in name) for name in params}
    program = program_of(
        captured(model, shape, training=True), params, buffers, {}, batch=batch, stored=Stored(shape, torch.float32),
        epilogue=Epilogue(None),
    )  # fmt: skip
    workspace, draw = Workspace(program, params, buffers), torch.Generator().manual_seed(0)
    x, y = torch.rand(batch, *shape, generator=draw) + 0.1, torch.zeros(batch, dtype=torch.int64)
    kept: list[Tensor] = []
    for step in (0, 1, 0):
        workspace.run(x[None], y[None], 1, step, 7, (0, program.forward))
        outputs = workspace.handed_out(batch)[0].clone().view(batch, *shape)
        kept.append((outputs > 0).double() / (1 - share))
        torch.testing.assert_close(outputs.double(), x.double() * kept[-1], rtol=1e-5, atol=1e-6)
    assert float((kept[0] > 0).double().mean()) == pytest.approx(1 - share, abs=0.03)
    assert torch.equal(kept[0], kept[2])
    assert not torch.equal(kept[0], kept[1])
    gradient = torch.randn(batch, *shape, generator=draw)
    workspace.handed_out(batch)[0].copy_(gradient.flatten(1))
    workspace.run(x[None], y[None], 1, 0, 7, (program.forward, program.backward))
    found = workspace.dense(workspace.gradients)
    first = torch.einsum("nto,nti->oi", gradient.double() * kept[0], x.double())
    torch.testing.assert_close(found["layer.weight_ih_l0"].double(), first, rtol=1e-4, atol=1e-4)
    # The second layer's weights that are zero have gradients of what it was given, where it gives more than zero.
    second = torch.einsum("nto,nti->oi", gradient.double() * (kept[0] > 0), x.double() * kept[0])
    torch.testing.assert_close(found["layer.weight_ih_l1"].double(), second, rtol=1e-4, atol=1e-4)
