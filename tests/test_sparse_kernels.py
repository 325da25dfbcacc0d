"""The sparse engine's programs against dense float64 networks, over shapes, masks and batches of all kinds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings, strategies as st
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.sparse.capture import captured
from lthfunc.sparse.kernels import build
from lthfunc.sparse.kernels.instructions import COLUMNS, OPCODES, encoded
from lthfunc.sparse.lowerings import dense
from lthfunc.sparse.packing import pack, unpack
from lthfunc.sparse.program import Epilogue, program_of
from lthfunc.sparse.workspace import Workspace
from lthfunc.trees.model import apply_evaluating, apply_training
from lthfunc.trees.ops import scaled

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))

#: float32 sums of some hundred terms against float64 ones, relative to the largest of a leaf.
TOLERANCE = 2e-5


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    build.load_kernels()


@contextmanager
def computed_densely(small: int = 0) -> Iterator[None]:
    """Survivors spread out among zeros, at any density and size, though it pays at few."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("GRADIENTS_FROM", "PRODUCTS_FROM", "CONVOLUTIONS_FROM"):
            patch.setattr(dense, name, 0)
        for name in ("_ROWS", "_PLACES", "_ENTRIES"):
            patch.setattr(dense, name, 1)
        patch.setattr(dense, "_SMALL", small)
        yield


def opcodes_of(module: nn.Module, shape: tuple[int, ...], batch: int, density: float) -> set[int]:
    """The instructions of a training step."""
    model = lf.from_module(module)
    code = program_of(
        captured(model, shape, training=True), *model.init(0), random_masks(model, density, 1), batch=batch,
        stored=(shape, torch.float32), scale=None, epilogue=Epilogue(),
    ).code  # fmt: skip
    return set(code.rows[:, 0].tolist())


def random_masks(model: lf.Model, density: float, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    params, _ = model.init(0)
    return {name: torch.rand(params[name].shape, generator=generator) < density for name in model.prunable}


def both(module: nn.Module, shape: tuple[int, ...], batch: int, density: float, seed: int = 0) -> Any:
    """(loss, gradients) of a masked network by the machine and in float64."""
    model = lf.from_module(module)
    masks = random_masks(model, density, seed)
    params, buffers = model.init(seed)
    params = lf.apply_masks(params, masks)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, *shape, generator=generator)
    y = torch.randint(0, 3, (batch,), generator=generator)

    graph = captured(model, shape, training=True)
    program = program_of(
        graph, params, buffers, masks, batch=batch, stored=(shape, torch.float32), scale=None, epilogue=Epilogue(),
    )  # fmt: skip
    workspace = Workspace(program, params, buffers)
    workspace.run(x[None], y[None], batch)
    ours = workspace.dense(workspace.gradients)

    def loss(params: dict[str, Tensor]) -> Tensor:
        wide = {name: value.double() if value.is_floating_point() else value for name, value in buffers.items()}
        return F.cross_entropy(apply_training(model, params, wide, x.double())[0], y)

    grads, value = torch.func.grad_and_value(loss)({name: leaf.double() for name, leaf in params.items()})
    theirs = {name: grad * masks[name] if name in masks else grad for name, grad in grads.items()}
    return float(workspace.totals[0]), ours, float(value), theirs


def check(module: nn.Module, shape: tuple[int, ...], batch: int = 20, density: float = 0.4, seed: int = 0) -> None:
    loss, ours, value, theirs = both(module, shape, batch, density, seed)
    assert loss == pytest.approx(value, rel=1e-5)
    for name, grad in theirs.items():
        scale = float(grad.abs().max()) + 1e-4
        difference = float((ours[name].double() - grad).abs().max())
        assert difference <= TOLERANCE * scale + 1e-6, (name, difference, scale)


class Head(nn.Module):
    """A body, then three classes from whatever it gives."""

    def __init__(self, body: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.body = body
        with torch.no_grad():
            size = body.eval()(torch.zeros(2, *shape)).flatten(1).shape[1]
        body.train()
        self.out = nn.Linear(size, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(self.body(x).flatten(1))
        return found


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    channels=st.integers(1, 5),
    outs=st.integers(1, 20),
    groups=st.sampled_from([1, 1, 2, 3]),
    size=st.tuples(st.integers(3, 12), st.integers(3, 20)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.integers(1, 2),
    batch=st.sampled_from([1, 7, 16, 17, 33]),
    density=st.sampled_from([0.0, 0.03, 0.3, 0.8, 1.0]),
    seed=st.integers(0, 5),
)
def test_convolutions(
    channels: int,
    outs: int,
    groups: int,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: int,
    batch: int,
    density: float,
    seed: int,
) -> None:
    ins, outs = channels * groups, outs * groups
    assume(all((k - 1) * dilation + 1 <= side + 2 * p for k, side, p in zip(kernel, size, padding, strict=True)))
    torch.manual_seed(seed)
    body = nn.Sequential(
        nn.Conv2d(2, ins, 3, padding=1), nn.Tanh(),
        nn.Conv2d(ins, outs, kernel, stride, padding, dilation, groups, bias=seed % 2 == 0), nn.ReLU(),
    )  # fmt: skip
    check(Head(body, (2, *size)), (2, *size), batch, density, seed)


def one_at_a_time(
    module: nn.Module, shape: tuple[int, ...], density: float, seed: int, *, stored: bool = False
) -> None:
    """An example alone has kernels of its own: as in a batch, and as in float64."""
    model = lf.from_module(module)
    masks = random_masks(model, density, seed)
    params, buffers = model.init(seed)
    params = lf.apply_masks({name: leaf + 0.1 for name, leaf in params.items()}, masks)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, *shape, generator=generator)
    scale = lf.Scale(255, (0.4,), (0.3,)) if stored else None
    if stored:
        x = torch.randint(0, 256, x.shape, generator=generator, dtype=torch.uint8)
    run = lf.sparse_program(model, lf.Ticket(params, buffers, masks), scale)
    together = run(x)
    wide, after = ({name: leaf.double() if leaf.is_floating_point() else leaf for name, leaf in tree.items()}
                   for tree in (params, buffers))  # fmt: skip
    expected = apply_evaluating(model, wide, after, scaled(x, scale).double())
    largest = float(expected.abs().max()) + 1e-4
    for number in range(3):
        alone = run(x[number : number + 1])
        assert float((alone[0] - together[number]).abs().max()) <= TOLERANCE * largest
        assert float((alone[0].double() - expected[number]).abs().max()) <= TOLERANCE * largest
    ready: Any = run._ready
    assert all(single == (batch[0] == 1) for (batch, _), (*_, single) in ready.items())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    channels=st.integers(1, 4),
    outs=st.integers(1, 9),
    groups=st.sampled_from([1, 1, 3]),
    size=st.tuples(st.integers(4, 40), st.integers(4, 40)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    pool=st.sampled_from([None, "twos", "overlapping", "average"]),
    density=st.sampled_from([0.0, 0.05, 0.4, 1.0]),
    seed=st.integers(0, 5),
)
def test_one_example_at_a_time(
    channels: int,
    outs: int,
    groups: int,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    pool: str,
    density: float,
    seed: int,
) -> None:
    ins, outs = channels * groups, outs * groups
    assume(all(k <= side + 2 * p for k, side, p in zip(kernel, size, padding, strict=True)))
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Conv2d(ins, outs, kernel, stride, padding, groups=groups, bias=seed % 2 == 0)]
    layers += [nn.BatchNorm2d(outs)] if seed % 3 == 0 else []
    layers.append(nn.ReLU() if seed % 2 else nn.Tanh())
    after = [(side + 2 * p - k) // s + 1 for side, p, k, s in zip(size, padding, kernel, stride, strict=True)]
    if pool and min(after) >= 3:
        pools = {"twos": nn.MaxPool2d(2), "overlapping": nn.MaxPool2d(3, 2, 1), "average": nn.AvgPool2d(2)}
        layers.append(pools[pool])
    one_at_a_time(Head(nn.Sequential(*layers), (ins, *size)), (ins, *size), density, seed)


@pytest.mark.parametrize("arch", ["lenet300", "lenet5", "conv2", "resnet20"])
def test_one_example_through_networks_of_the_catalogue(arch: str) -> None:
    shape = (1, 28, 28) if arch.startswith("lenet") else (3, 20, 20)
    model = getattr(lf.models, arch)(shape)
    one_at_a_time(model.evaluating, shape, 0.2, 1)
    if arch.startswith("lenet"):
        one_at_a_time(model.evaluating, shape, 0.2, 2, stored=True)


class Adding(nn.Module):
    """Additions that a layer can do as it writes, and some that it can't: of ReLU, of itself, of what comes later."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1, bias=each) for each in (True, False, True))
        self.first, self.short = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1, 2)
        self.norm, self.down, self.last = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(self.norm(self.b(x)) + x)
        y = self.a(x)
        x = y + torch.relu(self.c(x))
        x = torch.relu(self.down(x) + self.short(x))
        z = self.last(x)
        out: Tensor = z + z
        return out


def test_residual_additions_are_done_as_layers_write() -> None:
    torch.manual_seed(0)
    module = Head(Adding(), (3, 12, 20)).eval()
    one_at_a_time(module, (3, 12, 20), 0.5, 3)
    model = lf.from_module(module)
    params, buffers = model.init(0)
    run = lf.sparse_program(model, lf.Ticket(params, buffers, random_masks(model, 1.0, 0)))
    run(torch.randn(20, 3, 12, 20))
    (workspace,) = run._workspaces.values()
    names = [list(OPCODES)[row[0]] for row in workspace.program.code.rows.tolist()]
    assert names.count("add") == 2


def test_an_operation_without_a_kernel_for_one_example_takes_a_tile() -> None:
    model = lf.from_module(nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)))
    run = lf.sparse_program(model, lf.init(model))
    x = torch.randn(4, 6)
    torch.testing.assert_close(run(x[:1])[0], run(x)[0])
    assert not any(single for *_, single in run._ready.values())


@pytest.mark.parametrize(
    ("size", "kernel", "padding", "dilation", "outs"),
    [(6, 5, 0, 1, 4), (7, 5, 1, 1, 4), (4, 5, 2, 1, 4), (20, 5, 0, 1, 4), (9, 3, 0, 2, 4), (10, 5, 0, 1, 32)],
)
@pytest.mark.parametrize("density", [0.1, 1.0])
def test_gradients_beyond_the_border_are_not_computed(
    size: int, kernel: int, padding: int, dilation: int, outs: int, density: float
) -> None:
    body = nn.Sequential(conv(), nn.ReLU(), nn.Conv2d(6, outs, kernel, 1, padding, dilation), nn.ReLU())
    module = Head(body, (3, size, size))
    check(module, (3, size, size), density=density)

    model = lf.from_module(module)
    params, buffers = model.init(0)
    masks = random_masks(model, density, 0)
    code = program_of(
        captured(model, (3, size, size), training=True), params, buffers, masks, batch=20,
        stored=((3, size, size), torch.float32), scale=None, epilogue=Epilogue(),
    ).code  # fmt: skip
    limits = [
        row[4 + COLUMNS["products"].index("limits")] for row in code.rows.tolist() if row[0] == OPCODES["products"]
    ]
    assert any(limit >= 0 for limit in limits)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    features=st.integers(1, 300),
    hidden=st.integers(1, 70),
    batch=st.sampled_from([1, 5, 16, 60, 64, 130]),
    density=st.sampled_from([0.0, 0.02, 0.3, 0.7, 0.9, 1.0]),
    seed=st.integers(0, 5),
)
def test_linear_layers(features: int, hidden: int, batch: int, density: float, seed: int) -> None:
    module = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.Linear(hidden, 3))
    check(module, (features,), batch, density, seed)


@pytest.mark.parametrize("features", [1, 15, 16, 33, 100])
@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 0.97])
@pytest.mark.parametrize("batch", [50, 130])
def test_linear_layers_as_dense_products(features: int, density: float, batch: int) -> None:
    module = nn.Sequential(nn.Linear(features, 23), nn.ReLU(), nn.Linear(23, 17), nn.Linear(17, 3))
    with computed_densely():
        check(module, (features,), batch, density, seed=1)
        assert OPCODES["products"] not in opcodes_of(module, (features,), batch, density)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    channels=st.integers(1, 5),
    outs=st.integers(1, 20),
    size=st.tuples(st.integers(3, 12), st.integers(3, 20)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.integers(1, 2),
    pool=st.booleans(),
    batch=st.sampled_from([16, 17, 40]),
    density=st.sampled_from([0.0, 0.03, 0.5, 1.0]),
    small=st.sampled_from([0, 1000]),
    seed=st.integers(0, 5),
)
def test_convolutions_as_dense_ones(
    channels: int,
    outs: int,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: int,
    pool: bool,
    batch: int,
    density: float,
    small: int,
    seed: int,
) -> None:
    """Where lists would do, at any density: with maxima in registers, whose gradients are spread out, and without."""
    assume(all((k - 1) * dilation + 1 <= side + 2 * p for k, side, p in zip(kernel, size, padding, strict=True)))
    torch.manual_seed(seed)
    body = nn.Sequential(
        nn.Conv2d(2, channels, 3, padding=1), nn.Tanh(),
        nn.Conv2d(channels, outs, kernel, stride, padding, dilation, bias=seed % 2 == 0), nn.ReLU(),
    )  # fmt: skip
    with torch.no_grad():
        after = body(torch.zeros(1, 2, *size)).shape[2:]
    if pool and min(after) > 1:
        body.append(nn.MaxPool2d(2))
    module = Head(body, (2, *size))
    with computed_densely(small=small):
        check(module, (2, *size), batch, density, seed)
        opcodes = opcodes_of(module, (2, *size), batch, density)
    assert OPCODES["dense_convolution_gradients"] in opcodes
    assert OPCODES["weight_gradients"] not in opcodes


@pytest.mark.parametrize("threads", [1, 2])
def test_dense_convolutions_have_the_same_bits_on_any_number_of_threads(threads: int) -> None:
    body = nn.Sequential(nn.Conv2d(3, 18, 3, padding=1), nn.ReLU(), nn.Conv2d(18, 20, 3, padding=1), nn.ReLU())
    module, before = Head(body, (3, 24, 24)), torch.get_num_threads()
    with computed_densely():
        _, expected, *_ = both(module, (3, 24, 24), 40, 0.7)
        try:
            torch.set_num_threads(threads)
            _, found, *_ = both(module, (3, 24, 24), 40, 0.7)
        finally:
            torch.set_num_threads(before)
    for name, gradient in expected.items():
        assert torch.equal(gradient, found[name]), name


@pytest.mark.parametrize("activation", [nn.Sigmoid(), nn.Tanh(), nn.SiLU(), nn.ELU()])
def test_what_is_no_number_stays_so(activation: nn.Module) -> None:
    """A network that diverges must be seen to."""
    model = lf.from_module(nn.Sequential(nn.Linear(4, 5), activation, nn.Linear(5, 3)))
    params, buffers = model.init(0)
    params = {**params, "0.bias": torch.full((5,), torch.nan)}
    masks = random_masks(model, 0.5, 0)
    program = program_of(
        captured(model, (4,), training=True), params, buffers, masks, batch=20, stored=((4,), torch.float32),
        scale=None, epilogue=Epilogue(),
    )  # fmt: skip
    workspace = Workspace(program, params, buffers)
    workspace.run(torch.randn(1, 20, 4), torch.zeros(1, 20, dtype=torch.int64), 20)
    assert workspace.totals[0].isnan()


def conv(ins: int = 3, outs: int = 6) -> nn.Module:
    return nn.Conv2d(ins, outs, 3, padding=1)


POOLS = [
    nn.MaxPool2d(2), nn.MaxPool2d(3), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2, 1), nn.MaxPool2d(3, 2, ceil_mode=True),
    nn.MaxPool2d(2, dilation=2), nn.AvgPool2d(2), nn.AvgPool2d(3, 2), nn.AdaptiveAvgPool2d(1),
    nn.AdaptiveAvgPool2d((3, 2)),
]  # fmt: skip


@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Identity()], ids=["relu", "linear"])
def test_pooling(pool: Any, activation: nn.Module) -> None:
    check(Head(nn.Sequential(conv(), activation, pool), (3, 10, 14)), (3, 10, 14))


@pytest.mark.parametrize(
    "activation",
    [
        nn.ReLU(), nn.LeakyReLU(0.1), nn.ReLU6(), nn.Sigmoid(), nn.Tanh(), nn.SiLU(), nn.GELU(), nn.Hardtanh(),
        nn.Hardsigmoid(), nn.Hardswish(), nn.ELU(0.7), nn.ReLU(inplace=True), nn.SiLU(inplace=True),
    ],
    ids=str,
)  # fmt: skip
def test_activations(activation: nn.Module) -> None:
    check(nn.Sequential(nn.Linear(30, 20), activation, nn.Linear(20, 3)), (30,), density=0.8)


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d(6), nn.BatchNorm2d(6, affine=False), nn.GroupNorm(3, 6), nn.GroupNorm(1, 6, affine=False)],
    ids=str,
)  # fmt: skip
def test_normalisation_of_images(norm: nn.Module) -> None:
    body = nn.Sequential(conv(), norm, nn.ReLU(), conv(6, 4), nn.MaxPool2d(2))
    check(Head(body, (3, 8, 10)), (3, 8, 10), batch=21)


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm1d(24), nn.LayerNorm(24), nn.LayerNorm(24, elementwise_affine=False)], ids=str
)
def test_normalisation_of_features(norm: nn.Module) -> None:
    check(nn.Sequential(nn.Linear(30, 24), norm, nn.ReLU(), nn.Linear(24, 3)), (30,), batch=21)


class Residual(nn.Module):
    """A value read three times, a strided and padded shortcut, a concatenation, a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = conv(3, 8), conv(8, 8), nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.norm, self.after = nn.BatchNorm2d(8), nn.BatchNorm2d(12)
        self.out = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.norm(self.one(x)) + x)
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        y = F.relu(self.after(self.two(x)) + short)
        y = torch.cat([y, 0.5 * F.silu(y)], 1)
        found: Tensor = self.out(y.mean((2, 3)))
        return found


@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
def test_residual_networks(density: float) -> None:
    check(Residual(), (3, 8, 10), batch=19, density=density)


def test_a_weight_of_two_layers_is_refused() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.out = nn.Linear(20, 20), nn.Linear(20, 3)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.out(self.one(F.relu(self.one(x))))
            return found

    with pytest.raises(lf.UserError, match=r"no rule for linear with one\.weight, which another operation uses too"):
        check(Shared(), (20,))


class Through(nn.Module):
    """A function of an image, then three classes."""

    def __init__(self, function: Any, size: int) -> None:
        super().__init__()
        self.conv, self.side = conv(), conv()
        self.norm, self.scale = nn.BatchNorm1d(6 * 64), nn.Parameter(torch.ones(6, 3, 3, 3))
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("filters", torch.ones(6, 3, 3, 3))
        self.function, self.out = function, nn.Linear(size, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(self.function(self, x).flatten(1))
        return found


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda net, x: net.norm(net.conv(x).flatten(1)), "no rule for batch_norm on a flattened image"),
        (lambda net, x: F.group_norm(net.conv(x).flatten(1), 3), "no rule for group_norm on a flattened image"),
        (lambda net, x: F.conv2d(x, net.conv.weight * net.scale, padding=1), "of a parameter or buffer in Through"),
        (lambda net, x: F.conv2d(x, net.filters, padding=1), "with weights that are no parameters"),
        (lambda net, x: net.conv(x) * net.side(x), "no rule for mul of two values"),
        (lambda net, x: net.conv(x) + net.seen.add_(2), "no rule for add of a parameter or buffer"),
    ],
)  # fmt: skip
def test_what_would_be_computed_wrongly_is_refused(function: Any, words: str) -> None:
    with pytest.raises(lf.UserError, match=words):
        check(Through(function, 6 * 64), (3, 8, 8))


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
        graph, params, buffers, {}, batch=64, stored=((400,), torch.float32), scale=None, epilogue=Epilogue(),
    )  # fmt: skip
    workspace = Workspace(program, params, buffers)
    grads = []
    for step in (1, 1, 2):
        workspace.run(x[None], y[None], 64, 1, step, 7)
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
    with pytest.raises(lf.UserError, match=r"masks: 'fc9\.weight' is no parameter"):
        pack(state.params, {"fc9.weight": state.masks["fc1.weight"]})
    with pytest.raises(lf.UserError, match=r"'fc1\.weight' is of shape \(100, 300\), the parameter \(300, 16\)"):
        lf.sparse_program(model, state._replace(masks={"fc1.weight": state.masks["fc2.weight"]}))


def test_targets_that_are_no_class_and_other_dtypes_are_refused() -> None:
    model = lf.from_module(nn.Linear(4, 3))
    params, buffers = model.init(0)
    graph = captured(model, (4,), training=True)
    given: dict[str, Any] = {"batch": 2, "stored": ((4,), torch.float32), "scale": None, "epilogue": Epilogue()}
    workspace = Workspace(program_of(graph, params, buffers, {}, **given), params, buffers)
    x = torch.ones(1, 2, 4)
    for bad in (3, -1):
        with pytest.raises(Exception, match=f"target {bad} is none of 3 classes"):
            workspace.run(x, torch.tensor([[0, bad]]), 2)
    with pytest.raises(RuntimeError, match="targets must be int64"):
        workspace.run(x, torch.zeros(1, 2), 2)
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


def test_an_instruction_names_all_its_columns() -> None:
    with pytest.raises(ValueError, match="width"):
        encoded("fill", 0, 1, 0, **dict.fromkeys(COLUMNS["fill"][:-1], 0))
