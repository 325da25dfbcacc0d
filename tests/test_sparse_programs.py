"""Programs of the sparse engine: odd graphs, evaluation, stored inputs, and what is refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from sparse_programs import (
    Head,
    check,
    conv,
    kernels,  # noqa: F401
    random_masks,
)
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.sparse.capture import captured
from lthfunc.sparse.kernels import build
from lthfunc.sparse.kernels.instructions import COLUMNS, encoded
from lthfunc.sparse.program import Epilogue, Stored, program_of
from lthfunc.sparse.workspace import Workspace
from lthfunc.trees.model import apply_evaluating
from lthfunc.trees.ops import scaled
from lthfunc.trees.packing import pack, unpack

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))


@pytest.mark.parametrize("density", [0.0, 0.4, 1.0])
def test_layers_share_a_weight(density: float) -> None:
    """Its gradient is the sum of theirs."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.out = nn.Linear(20, 20), nn.Linear(20, 3)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.out(self.one(F.relu(self.one(torch.tanh(self.one(x))))))
            return found

    check(Shared(), (20,), 40, density)


class Through(nn.Module):
    """A function of an image, then three classes."""

    def __init__(self, function: Any, size: int) -> None:
        super().__init__()
        self.conv, self.side = conv(), conv()
        self.scale = nn.Parameter(torch.ones(6, 3, 3, 3))
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("filters", torch.ones(6, 3, 3, 3))
        self.function, self.out = function, nn.Linear(size, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(self.function(self, x).flatten(1))
        return found


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda net, x: F.conv2d(x, net.conv.weight * net.scale, padding=1), "of a parameter or buffer in Through"),
        (lambda net, x: net.conv(x) + net.seen.add_(2), "no rule for add of a parameter or buffer"),
    ],
)  # fmt: skip
def test_what_would_be_computed_wrongly_is_refused(function: Any, words: str) -> None:
    with pytest.raises(lf.UserError, match=words):
        check(Through(function, 6 * 64), (3, 8, 8))


def test_filters_may_be_a_buffer() -> None:
    check(Through(lambda net, x: net.conv(x) + F.conv2d(x, net.filters, padding=1), 6 * 64), (3, 8, 8))


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_a_value_divided_by_zero_is_infinite(zero: float) -> None:
    net, x = Through(lambda net, x: torch.tanh(net.conv(x) / zero), 6 * 64), torch.randn(3, 3, 8, 8)
    model = lf.from_module(net)
    state = lf.init(model)
    run = lf.sparse_program(model, state)
    torch.testing.assert_close(run(x), torch.func.functional_call(net, {**state.params, **state.buffers}, (x,)))


@pytest.mark.parametrize("pool_first", [True, False])
@pytest.mark.parametrize("pool", [nn.MaxPool2d(3, 1, 1), nn.MaxPool2d(2), nn.AvgPool2d(2)], ids=str)
def test_a_rectified_value_is_pooled_and_read_otherwise(pool: Any, pool_first: bool) -> None:
    """Whichever gradient comes last zeroes what all have added."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.side, self.out = conv(), conv(6, 6), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.conv(x))
            paths = (pool, self.side) if pool_first else (self.side, pool)
            ends = [path(x).mean((2, 3), keepdim=True) for path in paths]
            found: Tensor = self.out(torch.cat(ends, 1).flatten(1))
            return found

    check(Both(), (3, 8, 8))


def test_an_output_that_is_rectified() -> None:
    check(nn.Sequential(nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 3), nn.ReLU()), (20,))


def test_a_branch_that_leads_nowhere_is_left_out() -> None:
    """Unless it moves running statistics."""
    check(Through(lambda net, x: (net.side(x), net.conv(x))[1], 6 * 64), (3, 8, 8))
    body = Through(lambda net, x: (net.kept(net.side(x)), net.conv(x))[1], 6 * 64)
    body.kept = nn.BatchNorm2d(6)
    with pytest.raises(lf.UserError, match="all of whose operations lead to the output"):
        check(body, (3, 8, 8))


@pytest.mark.parametrize("twice", [False, True])
def test_convolutions_are_normalised_in_evaluation_before_maxima(twice: bool) -> None:
    layers = [conv(), nn.BatchNorm2d(6), *([nn.BatchNorm2d(6)] if twice else []), nn.ReLU(), nn.MaxPool2d(2)]
    model = lf.from_module(Head(nn.Sequential(*layers), (3, 8, 10)))
    state = lf.init(model)
    for name, buffer in state.buffers.items():
        if "running" in name:
            buffer.uniform_(0.2, 1.5, generator=torch.Generator().manual_seed(len(name)))
    x = torch.randn(19, 3, 8, 10, generator=torch.Generator().manual_seed(1))
    expected = apply_evaluating(model, state.params, state.buffers, x)
    torch.testing.assert_close(lf.sparse_program(model, state)(x), expected, rtol=1e-4, atol=1e-5)


def test_dense_layers_are_normalised_in_evaluation() -> None:
    """A linear layer with all its weights, then batch normalisation with running statistics."""
    model = lf.from_module(nn.Sequential(nn.Linear(20, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3)))
    state = lf.init(model)
    state.buffers["1.running_mean"].uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    x = torch.randn(19, 20, generator=torch.Generator().manual_seed(1))
    expected = apply_evaluating(model, state.params, state.buffers, x)
    torch.testing.assert_close(lf.sparse_program(model, state)(x), expected, rtol=1e-4, atol=1e-5)


def test_log_softmax_and_division() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(20, 10), nn.Linear(10, 3)

        def forward(self, x: Tensor) -> Tensor:
            return F.log_softmax(self.two(F.relu(self.one(x)) / 1.5), -1)

    check(Net(), (20,))


def test_maxima_in_registers_are_those_of_pooling_apart() -> None:
    """With ReLU and 2 × 2 windows, maxima are taken as the convolution writes; ties at zero get no gradient."""
    body = nn.Sequential(conv(1, 5), nn.ReLU(), nn.MaxPool2d(2), conv(5, 4), nn.ReLU(), nn.MaxPool2d(2))
    check(Head(body, (1, 12, 20)), (1, 12, 20), density=0.3)


def test_uint8_inputs_are_scaled_like_floats() -> None:
    shape, scale = (3, 7, 9), lf.Scale(255, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    model = lf.from_module(Head(conv(), shape))
    ticket = lf.init(model)
    x = torch.randint(0, 256, (37, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ours = lf.sparse_program(model, ticket, scale)(x)
    assert torch.allclose(ours, lf.sparse_program(model, ticket)(scaled(x, scale)), atol=1e-5)
    assert torch.allclose(ours, apply_evaluating(model, ticket.params, ticket.buffers, scaled(x, scale)), atol=1e-5)


def test_dropout_keeps_the_right_share_and_the_same_places_in_both_directions() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(400, 3)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.out(F.dropout(x, 0.3, self.training))
            return found

    model = lf.from_module(Net())
    params, buffers = model.init(0)
    graph = captured(model, (400,), training=True)
    x, y = torch.ones(64, 400), torch.zeros(64, dtype=torch.int64)
    program = program_of(
        graph, params, buffers, {}, batch=64, stored=Stored((400,), torch.float32), epilogue=Epilogue(),
    )  # fmt: skip
    workspace = Workspace(program, params, buffers)
    grads = []
    for step in (1, 1, 2):
        workspace.run(x[None], y[None], 1, step, 7)
        grads.append(workspace.gradients.clone())
    assert torch.equal(grads[0], grads[1])
    assert not torch.equal(grads[0], grads[2])
    # The gradient of a weight is the sum of the loss's gradient where its input was kept.
    weight = workspace.dense(grads[0])["out.weight"]
    bias = workspace.dense(grads[0])["out.bias"]
    kept = weight.sum(1) / bias / 400
    assert torch.allclose(kept, torch.ones(3), atol=0.03)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(density=st.floats(0, 1), seed=st.integers(0, 1000))
def test_unpack_is_the_inverse_of_pack(density: float, seed: int) -> None:
    model = lf.models.lenet300((1, 4, 4), 3)
    params, _ = model.init(seed)
    masks = random_masks(model, density, seed)
    params = lf.apply_masks(params, masks)
    packed = pack(params, masks)
    assert lf.same_bits(unpack(packed), params)
    assert all(len(packed.values[name]) == int(mask.sum()) for name, mask in masks.items())


def test_masks_of_another_model_are_refused() -> None:
    model = lf.models.lenet300((1, 4, 4), 3)
    state = lf.init(model)
    with pytest.raises(lf.UserError, match=r"masks: 'fc9\.weight' is not a parameter"):
        pack(state.params, {"fc9.weight": state.masks["fc1.weight"]})
    with pytest.raises(lf.UserError, match=r"'fc1\.weight' is of shape \(100, 300\), the parameter \(300, 16\)"):
        lf.sparse_program(model, state._replace(masks={"fc1.weight": state.masks["fc2.weight"]}))


def test_targets_that_are_no_class_and_other_dtypes_are_refused() -> None:
    model = lf.from_module(nn.Linear(4, 3))
    params, buffers = model.init(0)
    graph = captured(model, (4,), training=True)
    given: dict[str, Any] = {"batch": 2, "stored": Stored((4,), torch.float32), "epilogue": Epilogue()}
    workspace = Workspace(program_of(graph, params, buffers, {}, **given), params, buffers)
    x = torch.ones(1, 2, 4)
    for bad in (3, -1):
        with pytest.raises(Exception, match=f"target {bad} is none of 3 classes"):
            workspace.run(x, torch.tensor([[0, bad]]))
    with pytest.raises(ValueError, match="targets must be int64"):
        workspace.run(x, torch.zeros(1, 2))
    with pytest.raises(lf.UserError, match=r"computes in float32; weight is torch\.float64"):
        program_of(graph, {name: leaf.double() for name, leaf in params.items()}, buffers, {}, **given)


def test_a_ticket_of_another_model_is_refused() -> None:
    ticket = lf.init(lf.models.lenet300((1, 4, 4), 3))
    with pytest.raises(
        lf.UserError, match=r"ticket and the model lenet300 are of different networks: fc1\.weight is \(300, 16\) and"
    ):
        lf.sparse_program(lf.models.lenet300((1, 5, 5), 3), ticket)
    with pytest.raises(lf.UserError, match=r"ticket and the model lenet5 are of different networks"):
        lf.sparse_program(lf.models.lenet5((1, 28, 28), 3), ticket)


def test_a_batch_of_none_has_outputs_of_their_shapes() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            x = self.layer(x)
            return {"all": x, "sum": x.sum(1)}

    model = lf.from_module(Two())
    found = lf.sparse_program(model, lf.init(model))(torch.zeros(0, 4))
    assert {name: tuple(each.shape) for name, each in found.items()} == {"all": (0, 3), "sum": (0,)}


def test_threads_that_share_a_program_have_what_each_has_alone() -> None:
    model = lf.models.lenet300((1, 8, 8), 10)
    program = lf.sparse_program(model, lf.init(model))
    inputs = [torch.randn(512, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    alone = [program(x) for x in inputs]
    with ThreadPoolExecutor(4) as threads:
        assert lf.same_bits([*threads.map(program, inputs * 6)], alone * 6)


def test_an_instruction_names_all_its_columns() -> None:
    with pytest.raises(ValueError, match="number"):
        encoded("fill", 0, 1, 0, **dict.fromkeys(COLUMNS["fill"][:-1], 0))
