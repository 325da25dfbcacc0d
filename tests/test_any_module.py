"""Modules that were written after the library: none of them needs a line of it changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import lthfunc as lf
from lthfunc.training.engines.toolchain import why_not
from lthfunc.trees.model import apply_training

compiling = pytest.mark.skipif(why_not("cpu") is not None, reason=str(why_not("cpu")))


class Shared(nn.Module):
    """One layer used three times, and an embedding whose weight is the output layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(12, 16)
        self.middle = nn.Linear(16, 16)
        self.out = nn.Linear(16, 12, bias=False)
        self.out.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.words(x)
        for _ in range(3):
            y = torch.tanh(self.middle(y))
        out: Tensor = self.out(y)
        return out


class Two(nn.Module):
    """An image and some numbers; a dictionary of two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.see, self.read = nn.Conv2d(1, 4, 3), nn.Linear(5, 8)
        self.kind, self.size = nn.Linear(4 * 36 + 8, 3), nn.Linear(4 * 36 + 8, 1)

    def forward(self, image: Tensor, *, numbers: Tensor) -> dict[str, Tensor]:
        both = torch.relu(torch.cat([self.see(image).flatten(1), self.read(numbers)], 1))
        return {"kind": self.kind(both), "size": self.size(both)}


class Normed(nn.Module):
    """A grouped convolution under weight norm, normalisations of three kinds, a depthwise one and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = weight_norm(nn.Conv2d(4, 8, 3, groups=2))
        self.group, self.batch = nn.GroupNorm(2, 8), nn.BatchNorm2d(8)
        self.depth = nn.Conv2d(8, 8, 3, groups=8, padding=1)
        self.norm, self.drop = nn.LayerNorm(8), nn.Dropout(0.2)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depth(self.batch(F.gelu(self.group(self.conv(x)))))
        out: Tensor = self.fc(self.drop(self.norm(x.mean((2, 3)))))
        return out


def data_for(kind: str) -> lf.Dataset:
    draw = torch.Generator().manual_seed(0)
    if kind == "Shared":
        x = torch.randint(0, 12, (40, 6), generator=draw)
        pair: Any = (x, x.roll(1, 1))
    elif kind == "Two":
        image, numbers = torch.randn(40, 1, 8, 8, generator=draw), torch.randn(40, 5, generator=draw)
        y = torch.stack([torch.randint(0, 3, (40,), generator=draw).float(), numbers.sum(1)], 1)
        pair = ({"image": image, "numbers": numbers}, y)
        return lf.data.from_tensors(kind, pair, pair, val=8)
    else:
        pair = (torch.randn(40, 4, 8, 8, generator=draw), torch.randint(0, 5, (40,), generator=draw))
    return lf.data.from_tensors(kind, pair, pair, val=8, classes=12 if kind == "Shared" else 5)


def both_heads(outputs: dict[str, Tensor], y: Tensor) -> Tensor:
    return F.cross_entropy(outputs["kind"], y[:, 0].long()) + F.mse_loss(outputs["size"][:, 0], y[:, 1])


def kinds_right(outputs: dict[str, Tensor], y: Tensor) -> Tensor:
    return (outputs["kind"].argmax(1) == y[:, 0]).double().mean()


def named(kind: str) -> tuple[lf.Model, lf.Dataset, dict[str, Any]]:
    module = {"Shared": Shared, "Two": Two, "Normed": Normed}[kind]()
    data = data_for(kind)
    functions = {"loss": both_heads, "metric": kinds_right} if kind == "Two" else {}
    return lf.from_module(module, tokens=data.tokens, parts=data.parts), data, functions


@compiling
@pytest.mark.long
@pytest.mark.parametrize("kind", ["Shared", "Two", "Normed"])
def test_odd_modules_train_pruned_on_both_engines(kind: str) -> None:
    model, data, functions = named(kind)
    start = lf.init(model, seed=3)
    # By layer: weight norm divides by the length of a unit's weights, so each must keep one.
    pruned = lf.prune(density=0.5, allocate=lf.uniform(), select=lf.per_output())(start)
    ends = {}
    for engine in ("eager", "compile"):
        trainer = lf.make_trainer(
            model, data, optimizer=lf.adam(1e-2, weight_decay=1e-3), batch_size=8, engine=engine, **functions
        )
        done = lf.fit(trainer, pruned, seed=0, until=16, eval_every=8)
        assert done.curve[-1].train_loss < done.curve[1].train_loss
        ends[engine] = done.state.params
        for name, mask in pruned.masks.items():
            assert not done.state.params[name][~mask].any()
    if kind != "Normed":  # dropout draws other numbers in compiled code
        for name, leaf in ends["eager"].items():
            torch.testing.assert_close(ends["compile"][name], leaf, rtol=1e-3, atol=1e-4)


def test_a_shared_weight_is_one_parameter_with_one_mask() -> None:
    model = lf.from_module(Shared(), tokens=True)
    assert model.prunable == ("words.weight", "middle.weight")
    assert lf.count(lf.init(model).masks).total == 12 * 16 + 16 * 16
    state = lf.prune(density=0.3)(lf.init(model))
    module: Any = lf.to_module(lf.ticket(state), model)
    assert module.out.weight is module.words.weight
    assert torch.equal(module.words.weight != 0, state.masks["words.weight"])


def test_weight_norm_is_pruned_in_its_direction_and_drawn_from_the_seed() -> None:
    model = lf.from_module(Normed())
    direction = "conv.parametrizations.weight.original1"
    assert direction in model.prunable
    one, other = (lf.init(model, seed).params for seed in (0, 1))
    assert not torch.equal(one[direction], other[direction])
    lengths = one[direction].flatten(1).norm(dim=1)
    torch.testing.assert_close(one["conv.parametrizations.weight.original0"].flatten(), lengths)
    state = lf.prune(density=0.5, select=lf.per_output(), allocate=lf.uniform())(lf.init(model))
    module: Any = lf.to_module(lf.ticket(state), model)
    assert torch.equal(module.conv.weight != 0, state.masks[direction])


def test_frozen_parameters_stay_and_are_not_pruned() -> None:
    module: Any = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    module[0].requires_grad_(False)
    model = lf.from_module(module)
    state = lf.init(model, seed=5)
    assert model.prunable == ("2.weight",)
    assert torch.equal(state.buffers["0.weight"], module[0].weight)
    x, y = torch.randn(30, 6), torch.randint(0, 3, (30,))
    data = lf.data.from_tensors("d", (x, y), (x, y), val=6)
    trained = lf.train(model, data, optimizer=lf.sgd(0.1), steps=3, batch_size=8)(state)
    assert torch.equal(trained.buffers["0.weight"], module[0].weight)
    assert not torch.equal(trained.params["2.weight"], state.params["2.weight"])


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(2, 4, 3), (2, 9)),
        (nn.Conv3d(2, 4, 2), (2, 4, 4, 4)),
        (nn.ConvTranspose1d(2, 4, 3), (2, 9)),
        (nn.ConvTranspose2d(2, 4, 3, stride=2), (2, 5, 5)),
        (nn.ConvTranspose3d(2, 4, 2), (2, 3, 3, 3)),
        (nn.Linear(6, 4), (2, 6)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_layers_of_every_kind_are_pruned(layer: nn.Module, shape: tuple[int, ...]) -> None:
    model = _headed(layer, shape)
    assert model.prunable == ("0.weight", "2.weight")
    state = lf.prune(density=0.4)(lf.init(model))
    assert lf.count(state.masks).kept == round(0.4 * lf.count(state.masks).total)
    x, y = torch.randn(30, *shape), torch.randint(0, 3, (30,))
    data = lf.data.from_tensors("d", (x, y), (x, y), val=6)
    end = lf.train(model, data, optimizer=lf.adam(1e-2, weight_decay=0.1), steps=3, batch_size=8)(state)
    for name, mask in state.masks.items():
        assert not end.params[name][~mask].any()
        assert bool((end.params[name] != state.params[name])[mask].any())


def _headed(layer: nn.Module, shape: tuple[int, ...]) -> lf.Model:
    features = layer(torch.zeros(1, *shape)).numel()
    return lf.from_module(nn.Sequential(layer, nn.Flatten(), nn.Linear(features, 3)))


class Frozen(nn.Module):
    """A frozen convolution, a frozen linear layer between others, and a normalisation with one frozen leaf."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1).requires_grad_(False)
        self.fc1, self.fc2, self.fc3 = nn.Linear(24, 16), nn.Linear(16, 16).requires_grad_(False), nn.Linear(16, 5)
        self.norm = nn.BatchNorm1d(16)
        self.norm.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.fc1(self.conv(x).flatten(1)))
        out: Tensor = self.fc3(torch.relu(self.norm(self.fc2(x))))
        return out


def test_frozen_layers_are_compacted_and_stay_on_every_engine() -> None:
    model = lf.from_module(Frozen())
    assert model.prunable == ("fc1.weight", "fc3.weight")
    state = lf.init(model)
    masks = {name: mask.clone() for name, mask in state.masks.items()}
    masks["fc1.weight"][:7] = False
    ticket = lf.Ticket(lf.apply_masks(state.params, masks), state.buffers, masks)
    x, y = torch.randn(40, 1, 3, 4), torch.randint(0, 5, (40,))
    wanted = torch.func.functional_call(model.evaluating, (ticket.params, ticket.buffers), (x,))
    small = lf.compact(model, ticket, (1, 3, 4))
    torch.testing.assert_close(small.model.evaluating(x), wanted, rtol=1e-5, atol=1e-6)
    assert small.buffers["fc2.weight"].shape == (16, 9)
    data = lf.data.from_tensors("d", (x, y), (x, y), val=8)
    pruned = state._replace(params=ticket.params, masks=masks)
    engines: list[Any] = ["eager", lf.compact_engine("eager"), *([lf.sparse_engine] if why_not("cpu") is None else [])]
    first, *others = [
        lf.train(model, data, optimizer=lf.sgd(0.1, 0.9), steps=8, batch_size=16, engine=engine)(pruned)
        for engine in engines
    ]
    for other in others:
        for name, leaf in first.params.items():
            torch.testing.assert_close(other.params[name], leaf, rtol=1e-4, atol=1e-6)
        assert torch.equal(other.buffers["fc2.weight"], state.buffers["fc2.weight"])


def test_buffers_that_a_module_replaces_are_carried() -> None:
    class Counting(nn.Module):
        seen: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.seen = self.seen + len(x)
            out: Tensor = self.fc(x)
            return out

    model = lf.from_module(Counting())
    state = lf.init(model)
    _, buffers = apply_training(model, state.params, state.buffers, torch.randn(7, 3))
    assert buffers["seen"] == 7
    assert state.buffers["seen"] == 0


def test_attention_of_torch_is_prunable_and_runs() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.other = nn.MultiheadAttention(8, 2, kdim=8, vdim=4, batch_first=True)
            self.fc = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.attention(x, x, x, need_weights=False)[0]
            x = self.other(x, x, x[..., :4], need_weights=False)[0]
            out: Tensor = self.fc(x.mean(1))
            return out

    model = lf.from_module(Attending())
    assert [name for name in model.prunable if "in_proj" not in name and "_proj_weight" in name] == [
        "other.q_proj_weight", "other.k_proj_weight", "other.v_proj_weight"
    ]  # fmt: skip
    assert "attention.in_proj_weight" in model.prunable
    x, y = torch.randn(40, 5, 8), torch.randint(0, 3, (40,))
    data = lf.data.from_tensors("d", (x, y), (x, y), val=6)
    pruned = lf.prune(density=0.3)(lf.init(model))
    trained = lf.train(model, data, optimizer=lf.adam(1e-2), steps=3, batch_size=8)(pruned)
    assert not trained.params["attention.in_proj_weight"][~trained.masks["attention.in_proj_weight"]].any()
    assert 0 <= lf.accuracy_on(model, trained, data) <= 1
