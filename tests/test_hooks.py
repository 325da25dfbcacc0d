"""Hooks, checkpointing and gradients within forward: as in plain PyTorch, or one line that names what and where."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from network_engines import interpreted
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.training.engines.toolchain import why_not

DRAW = torch.Generator().manual_seed(0)
X, Y = torch.randn(20, 6, generator=DRAW), torch.arange(20) % 3
DATA = lf.Dataset("d", lf.Split(X, Y), lf.Split(X, Y), lf.Split(X, Y), 3)
ENGINES: list[Any] = ["eager", *([interpreted] if why_not("cpu") is None else [])]


class Net(nn.Module):
    """`act` stands between two layers."""

    def __init__(self, act: Callable[[Any, Tensor], Tensor] = lambda net, h: h) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b, self.act = nn.Linear(6, 8), nn.Linear(8, 3), act

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.act(self, torch.tanh(self.a(x))))
        return out


class Doubled(torch.autograd.Function):
    """The identity, whose gradient is doubled; as torch.func takes such."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 2


class Older(torch.autograd.Function):
    """The same, as it was written before."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 2


def doubled_by_a_hook(net: Any, h: Tensor) -> Tensor:
    if h.requires_grad:
        h.register_hook(lambda gradient: gradient * 2)
    return h


def by_a_function(net: Any, h: Tensor) -> Tensor:
    out: Tensor = Doubled.apply(h)
    return out


def without_gradient(net: Any, h: Tensor) -> Tensor:
    with torch.no_grad():
        scale = h.abs().max()
    return h / scale


def made_in_inference_mode(net: Any, h: Tensor) -> Tensor:
    with torch.inference_mode():
        scale = torch.full((8,), 0.5)
    return h * scale.clone()


def computed_in_inference_mode(net: Any, h: Tensor) -> Tensor:
    with torch.inference_mode():
        h = h * 2
    return h.clone()


def slope_by_torch_func(net: Any, h: Tensor) -> Tensor:
    out: Tensor = h + torch.func.grad(lambda v: v.square().sum())(h)
    return out


def hooked(net: nn.Module, how: str, *given: Any, **named: Any) -> nn.Module:
    getattr(net, how)(*given, **named)
    return net


def with_layer_hook(how: str, hook: Callable[..., Any]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        net = Net()
        getattr(net.b, how)(hook)
        return net

    return make


def twice(module: Any, inputs: Any, *outputs: Any) -> Any:
    """A forward hook, or one before forward."""
    return outputs[0] * 2 if outputs else (inputs[0] * 2,)


WORKING: dict[str, Callable[[], nn.Module]] = {
    **{act.__name__: lambda act=act: Net(act) for act in (  # type: ignore[misc]
        doubled_by_a_hook, by_a_function, without_gradient, made_in_inference_mode, computed_in_inference_mode,
        slope_by_torch_func,
    )},
    "forward hook": with_layer_hook("register_forward_hook", twice),
    "forward pre-hook": with_layer_hook("register_forward_pre_hook", twice),
    "older backward hook": with_layer_hook(
        "register_backward_hook", lambda module, into, out: tuple(None if each is None else each * 3 for each in into)
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*non-full backward hook:FutureWarning")
@pytest.mark.parametrize("kind", WORKING)
def test_gradients_are_those_of_plain_pytorch(kind: str) -> None:
    module = WORKING[kind]()
    names, leaves = zip(*module.named_parameters(), strict=True)
    found = torch.autograd.grad(F.cross_entropy(module(X), Y), leaves, allow_unused=True)
    wanted = {name: torch.zeros(()) if leaf is None else leaf for name, leaf in zip(names, found, strict=True)}
    model = lf.from_module(module, init=lf.as_built)
    state = lf.init(model)
    for engine in ENGINES if kind == "doubled_by_a_hook" else ["eager"]:
        end = lf.train(model, DATA, optimizer=lf.sgd(1.0), steps=1, batch_size=20, engine=engine)(state)
        for name, leaf in end.params.items():
            moved = wanted[name].expand_as(leaf)
            torch.testing.assert_close(state.params[name] - leaf, moved, rtol=1e-4, atol=1e-6)
    for name, leaf in lf.snip(lf.loss_of(model, state.buffers), [(X, Y)])(state.params, state.masks).items():
        torch.testing.assert_close(leaf, (wanted[name] * state.params[name]).abs(), rtol=1e-4, atol=1e-6)


def checkpointed(reentrant: bool) -> Callable[[Any, Tensor], Tensor]:
    def act(net: Any, h: Tensor) -> Tensor:
        out: Tensor = checkpoint(torch.sigmoid, h, use_reentrant=reentrant)
        return out

    return act


def retaining(net: Any, h: Tensor) -> Tensor:
    h.retain_grad()
    return h


def in_inference_mode(net: Any, h: Tensor) -> Tensor:
    with torch.inference_mode():
        h = h * net.a(torch.ones(len(h), 6))
    return h.clone()


def always_hooked(net: Any, h: Tensor) -> Tensor:
    h.register_hook(lambda gradient: gradient)
    return h


def requiring(net: Any, h: Tensor) -> Tensor:
    with torch.enable_grad():
        return h.detach().requires_grad_()


def older_function(net: Any, h: Tensor) -> Tensor:
    out: Tensor = Older.apply(h)
    return out


def differentiating(net: Any, h: Tensor) -> Tensor:
    (slope,) = torch.autograd.grad(h.sum(), net.a.weight, create_graph=True)
    found: Tensor = h + slope.sum()
    return found


REFUSED = {
    checkpointed(False): r"test_hooks\.py: out: Tensor = checkpoint\(.*: torch\.utils\.checkpoint cannot be used",
    checkpointed(
        True
    ): "torch.utils.checkpoint cannot be used, since .*; call the function itself, which gives the same",
    retaining: r"line \d+ of .*: h\.retain_grad\(\)\): retain_grad\(\) keeps what nobody reads; leave it out",
    in_inference_mode: r"nothing can be trained through torch\.inference_mode\(\)",
    always_hooked: r"a hook is registered on a tensor that takes no gradient, as in evaluation; ask h\.requires_grad",
    requiring: r"requires_grad_\(\) cannot be called, .*; torch\.func\.grad gives a gradient within forward",
    older_function: r"an autograd\.Function needs forward\(\.\.\.\) and setup_context\(ctx, inputs, output\) apart",
    differentiating: r"a gradient is taken in forward, and in evaluation there are none; torch\.func\.grad gives it",
}


@pytest.mark.parametrize("act", REFUSED, ids=lambda act: act.__name__)
def test_what_torch_func_cannot_do_is_told_in_plain_words(act: Any) -> None:
    model = lf.from_module(Net(act))
    state = lf.init(model)
    calls: list[Callable[[], Any]] = [lambda: lf.train(model, DATA, optimizer=lf.sgd(0.1), steps=1, batch_size=8)]
    if act not in (always_hooked, differentiating):  # which evaluation alone cannot do
        calls.append(lambda: lf.snip(lf.loss_of(model, {}), [(X, Y)])(state.params, state.masks))
    for call in calls:
        with pytest.raises(UserError, match=f"^Net.*{REFUSED[act]}") as caught:
            call()
        assert "\n" not in str(caught.value)
        assert "functorch" not in str(caught.value)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (lambda: hooked_weight("register_hook"), r"b\.weight has a gradient hook \(register_hook\), which would never"),
        (
            lambda: hooked_weight("register_post_accumulate_grad_hook"),
            r"b\.weight has a gradient hook \(register_post_accumulate_grad_hook\), .* an optimizer of your own",
        ),
        (
            with_layer_hook("register_full_backward_hook", lambda module, into, out: None),
            r"^b has a backward hook \(register_full_backward_hook\), which .* remove it, and change gradients in an",
        ),
        (
            with_layer_hook("register_full_backward_pre_hook", lambda module, out: None),
            r"^b has a backward hook \(register_full_backward_pre_hook\)",
        ),
    ],
    ids=["weight", "weight, accumulated", "layer", "layer, before"],
)
def test_hooks_on_gradients_that_would_not_run_are_refused(module: Callable[[], nn.Module], words: str) -> None:
    with pytest.raises(UserError, match=words):
        lf.from_module(module())
    pruned = module()
    prune.l1_unstructured(pruned.a, "weight", 0.5)
    with pytest.raises(UserError, match=words):
        lf.from_pruned(pruned)


def hooked_weight(how: str) -> nn.Module:
    net = Net()
    getattr(net.b.weight, how)(lambda leaf: None)
    return net
