"""Scores of networks of any outputs and of complex weights, and of modules that have no gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lthfunc as lf

DRAW = torch.Generator().manual_seed(0)
X, Y = torch.randn(24, 6, generator=DRAW), torch.arange(24) % 3
BATCHES = [(X[:12], Y[:12]), (X[12:], Y[12:])]

#: By name, a score of a model and its state.
SCORES: dict[str, Callable[[lf.Model, lf.TrainState, Any], Any]] = {
    "snip": lambda model, state, batches: lf.snip(lf.loss_of(model, state.buffers), batches),
    "grasp": lambda model, state, batches: lf.grasp(lf.loss_of(model, state.buffers), batches),
    "taylor": lambda model, state, batches: lf.taylor(lf.loss_of(model, state.buffers), batches),
    "fisher": lambda model, state, batches: lf.fisher(lf.loss_of(model, state.buffers), batches),
    "movement": lambda model, state, batches: lf.movement(lf.loss_of(model, state.buffers), batches, lr=0.1),
    "synflow": lambda model, state, batches: lf.synflow(lf.forward_of(model, state.buffers), (6,)),
    "wanda": lambda model, state, batches: lf.wanda(lf.input_moments(model, state, [x for x, _ in batches])),
}


def scored(name: str, module: nn.Module, batches: Any = BATCHES) -> dict[str, Tensor]:
    model = lf.from_module(module, init=lf.as_built)
    state = lf.init(model)
    scores: dict[str, Tensor] = SCORES[name](model, state, batches)(state.params, state.masks)
    lf.prune(density=0.5, score=SCORES[name](model, state, batches))(state)
    return scores


class Net(nn.Module):
    """`give` makes the outputs of the hidden layer's and the last one's."""

    def __init__(self, give: Callable[[Tensor, Tensor], Any] = lambda h, out: out) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b, self.give = nn.Linear(6, 8), nn.Linear(8, 3), give

    def forward(self, x: Tensor) -> Any:
        h = torch.tanh(self.a(x))
        return self.give(h, self.b(h))


OUTPUTS = {
    "dictionary": lambda h, out: {"logits": out, "hidden": h},
    "of one": lambda h, out: {"anything": out},
    "tuple": lambda h, out: (out, h),
    "with whole numbers": lambda h, out: (out, out.argmax(1), None, "text"),
    "with complex numbers": lambda h, out: (out, torch.complex(out, out)),
}


@pytest.mark.parametrize("kind", OUTPUTS)
@pytest.mark.parametrize("score", SCORES)
def test_outputs_of_every_kind_are_scored_as_the_tensor_in_them(score: str, kind: str) -> None:
    wanted, found = scored(score, Net()), scored(score, Net(OUTPUTS[kind]))
    for name, leaf in wanted.items():
        torch.testing.assert_close(found[name], leaf)
        assert leaf.any()


def test_outputs_of_hugging_face_are_scored() -> None:
    transformers = pytest.importorskip("transformers")
    module = Net(lambda h, out: transformers.modeling_outputs.SequenceClassifierOutput(logits=out, hidden_states=(h,)))
    for score in SCORES:
        for name, leaf in scored(score, Net()).items():
            torch.testing.assert_close(scored(score, module)[name], leaf)


class Complex(nn.Module):
    """Complex weights; in `apart` the same network of their real and imaginary parts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.a = nn.Linear(6, 5, bias=False, dtype=torch.complex64)
        self.b = nn.Linear(5, 3, bias=False, dtype=torch.complex64)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(torch.tanh(self.a(torch.complex(x, 0.3 * x.roll(1, -1)))))
        return out.real + 0.5 * out.imag


def apart(parts: dict[str, Tensor], x: Tensor) -> Tensor:
    """`Complex` in real arithmetic, of parts like a.re and a.im."""

    def linear(name: str, re: Tensor, im: Tensor) -> tuple[Tensor, Tensor]:
        ours, theirs = parts[f"{name}.re"], parts[f"{name}.im"]
        return re @ ours.T - im @ theirs.T, re @ theirs.T + im @ ours.T

    re, im = linear("a", x, 0.3 * x.roll(1, -1))
    bottom = torch.cosh(2 * re) + torch.cos(2 * im)  # tanh(re + i im)
    re, im = linear("b", torch.sinh(2 * re) / bottom, torch.sin(2 * im) / bottom)
    return re + 0.5 * im


def test_a_complex_weight_is_scored_as_its_two_real_parts() -> None:
    """By PyTorch's own autograd on the real network: gradients, Hessians and squares of each part, then summed."""
    module = Complex()
    parts = {
        f"{name[0]}.{part}": getattr(leaf.detach(), full).clone().requires_grad_()
        for name, leaf in module.named_parameters()
        for part, full in (("re", "real"), ("im", "imag"))
    }

    def gradient(x: Tensor, y: Tensor, temperature: float = 1.0, of: Any = None) -> dict[str, Tensor]:
        loss = F.cross_entropy(apart(of or parts, x) / temperature, y)
        found = torch.autograd.grad(loss, list((of or parts).values()), create_graph=True)
        return dict(zip(parts, found, strict=True))

    def mean(trees: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.stack([tree[name] for tree in trees]).mean(0) for name in parts}

    def both(tree: dict[str, Tensor]) -> dict[str, Tensor]:
        return {f"{name}.weight": (tree[f"{name}.re"] + tree[f"{name}.im"]).detach() for name in "ab"}

    def times(tree: dict[str, Tensor], of: Any = None) -> dict[str, Tensor]:
        return {name: tree[name] * (of or parts)[name] for name in parts}

    at_200 = mean([gradient(x, y, 200.0) for x, y in BATCHES])
    along = sum((at_200[name] * at_200[name].detach()).sum() for name in parts)
    flow = dict(zip(parts, torch.autograd.grad(along, list(parts.values())), strict=True))  # type: ignore[arg-type]
    first = gradient(*BATCHES[0])
    moved = {name: (leaf - 0.1 * first[name]).detach().requires_grad_() for name, leaf in parts.items()}
    second = both(times(gradient(*BATCHES[1], of=moved), moved))
    each = [gradient(x[None], y[None]) for x, y in zip(*map(torch.cat, zip(*BATCHES, strict=True)), strict=True)]
    taylor = [both(times(gradient(x, y))) for x, y in BATCHES]
    wanted = {
        "snip": {name: leaf.abs() for name, leaf in both(times(mean([gradient(*batch) for batch in BATCHES]))).items()},
        "grasp": both(times(flow)),
        "taylor": {name: (taylor[0][name] ** 2 + taylor[1][name] ** 2) / 2 for name in taylor[0]},
        "movement": {name: -leaf - second[name] for name, leaf in both(times(first)).items()},
        "fisher": both(
            {name: torch.stack([tree[name] ** 2 for tree in each]).mean(0) * parts[name] ** 2 / 2 for name in parts}
        ),
    }
    for score, leaves in wanted.items():
        found = scored(score, module)
        for name, leaf in leaves.items():
            close = float(1e-4 * leaf.abs().max())
            torch.testing.assert_close(found[name], leaf, rtol=1e-3, atol=close, msg=f"{score}: {{}}".format)
    assert all(bool(leaf.isfinite().all()) for leaf in scored("synflow", module).values())


def test_moments_and_surgery_of_complex_layers_follow_their_phases() -> None:
    """Inputs turned by phases, and weights by the opposite ones, make the same outputs: so the same weights stay."""
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(50, 6, generator=draw, dtype=torch.float32) @ torch.randn(6, 6, generator=draw, dtype=torch.float32)
    weight = torch.randn(4, 6, generator=draw, dtype=torch.float32)
    phases = torch.polar(torch.ones(6, dtype=torch.float32), 6 * torch.rand(6, generator=draw, dtype=torch.float32))
    ends = []
    for turn in (torch.ones(6, dtype=torch.complex64), phases):
        module = nn.Linear(6, 4, bias=False, dtype=torch.complex64)
        module.weight.data = weight * turn.conj()
        model = lf.from_module(module, init=lf.as_built)
        state = lf.init(model)
        moments = lf.input_moments(model, state, [x * turn])
        torch.testing.assert_close(moments["weight"].diagonal().real, x.double().square().mean(0))
        wanda = lf.wanda(moments)(state.params, state.masks)["weight"]
        torch.testing.assert_close(wanda, weight.abs() * x.square().mean(0).sqrt())
        end = lf.sparsegpt(moments, 0.5)(state)
        ends.append((end.masks["weight"], end.params["weight"] * turn))
    real = lf.from_module(nn.Linear(6, 4, bias=False).double(), init=lf.as_built)
    state = lf.init(real)._replace(params={"weight": weight})
    end = lf.sparsegpt(lf.input_moments(real, state, [x]), 0.5)(state)
    for mask, leaf in ends:
        assert torch.equal(mask, end.masks["weight"])
        torch.testing.assert_close(leaf, end.params["weight"].to(torch.complex64))
