"""Einstein sums as other operations: the graph against `torch.einsum`, and the sparse engine against float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from sparse_programs import Head, check, check_inference, kernels  # noqa: F401
from test_decoding import check as check_decoding
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter

import lthfunc as lf
from lthfunc.sparse.capture import Captured, captured_call, operation_of
from lthfunc.sparse.kernels import build

needs_kernels = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))
einsum = torch.einsum


def graph_of(equation: str, operands: list[Tensor], leaf: int) -> Captured:
    """Of an einsum. leaf: the operand that is a parameter, if there is one of this number."""

    def call(leaves: dict[str, Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
        given = list(inputs)
        if leaves:
            given.insert(leaf, leaves["leaf"])
        return einsum(equation, *given)

    params = {"leaf": operands[leaf]} if leaf < len(operands) else {}
    inputs = tuple(each for number, each in enumerate(operands) if number != leaf)
    return captured_call("Net", call, params, {}, inputs, training=False, checked=False)


def run(graph: Captured, operands: list[Tensor], leaf: int) -> Tensor:
    given = [*operands[leaf : leaf + 1], *operands[:leaf], *operands[leaf + 1 :]]
    found: Any = Interpreter(GraphModule(graph.constants, graph.graph)).run(*given, enable_io_processing=False)
    result: Tensor = found[0] if isinstance(found, (list, tuple)) else found
    return result


@st.composite
def equations(draw: st.DrawFn) -> tuple[str, list[tuple[int, ...]]]:
    """(an equation, the shapes of its operands)."""
    letters = "abcdXY"[: draw(st.integers(1, 6))]
    sizes = dict(zip(letters, draw(st.permutations([1, 2, 3, 4, 5, 6])), strict=False))
    some = st.lists(st.sampled_from(letters), max_size=4, unique=True).map("".join)
    terms = draw(st.lists(some, min_size=1, max_size=3))
    shapes = [tuple(sizes[each] for each in term) for term in terms]
    if draw(st.booleans()):  # with an ellipsis, of which operands have the last dimensions
        more = (7, 8)[draw(st.integers(0, 2)) :]
        for number, term in enumerate(terms):
            place, count = draw(st.integers(0, len(term))), draw(st.integers(0, len(more)))
            terms[number] = f"{term[:place]}...{term[place:]}"
            shapes[number] = (*shapes[number][:place], *more[len(more) - count :], *shapes[number][place:])
    used = sorted({each for term in terms for each in term} - {"."})
    if draw(st.booleans()):
        return ",".join(terms), shapes
    result = "".join(draw(st.lists(st.sampled_from(used), unique=True))) if used else ""
    dots = "..." if any("..." in term for term in terms) else ""
    return f"{','.join(terms)} -> {dots}{result}", shapes


@pytest.mark.parametrize("examples", [60, pytest.param(1500, marks=pytest.mark.long)])
def test_any_equation(examples: int) -> None:
    @settings(max_examples=examples, deadline=None, derandomize=True)
    @given(equation=equations(), leaf=st.integers(0, 4))
    def holds(equation: tuple[str, list[tuple[int, ...]]], leaf: int) -> None:
        terms, shapes = equation
        draw = torch.Generator().manual_seed(0)
        operands = [torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes]
        graph = graph_of(terms, operands, leaf)
        names = [operation_of(node) for node in graph.graph.nodes if node.op == "call_function"]
        assert "einsum" not in names or (len(shapes) == 1 and leaf == 0)
        for node in graph.graph.nodes:
            if node.op == "call_function":
                assert node.meta["val"].dtype == torch.float64
        torch.testing.assert_close(run(graph, operands, leaf), einsum(terms, *operands))

    holds()


@pytest.mark.parametrize("equation", ["aab->ab", "abb", "ab,bb->a"])
def test_an_operand_with_a_letter_twice_stays_an_einsum(equation: str) -> None:
    operands = [torch.randn([3] * len(term)) for term in equation.partition("->")[0].split(",")]
    graph = graph_of(equation, operands, 9)
    assert "einsum" in [operation_of(node) for node in graph.graph.nodes]
    torch.testing.assert_close(run(graph, operands, 9), einsum(equation, *operands))


class Tokens(nn.Module):
    """A function of tokens, which may read layers' weights and parameters."""

    def __init__(self, function: Callable[[Tokens, Tensor], Tensor], names: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function, self.up = function, nn.Linear(3, 8)
        for name, module in (("wide", nn.Linear(8, 5)), ("narrow", nn.Linear(6, 8)), ("q", nn.Linear(8, 8))):
            if name in names:
                setattr(self, name, module)
        if "vector" in names:
            self.vector = nn.Parameter(torch.randn(8))
        if "table" in names:
            self.register_buffer("table", torch.randn(5, 8))
        for name, leaf in list(self.named_parameters()):
            if name in ("wide.bias", "narrow.bias"):  # nothing reads them
                leaf.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.function(self, torch.tanh(self.up(x.unflatten(1, (-1, 3)))))
        return found


def heads(x: Tensor) -> Tensor:
    found: Tensor = x.unflatten(-1, (2, 4))
    return found


def scores(net: Any, x: Tensor) -> Tensor:
    found: Tensor = einsum("bqhd,bkhd->bhqk", heads(net.q(x)), heads(x)).softmax(-1)
    return found


FUNCTIONS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a layer": lambda net, x: einsum("bld,od->blo", x, net.wide.weight),
    "a layer with its weight turned": lambda net, x: einsum("bld,do->blo", x, net.narrow.weight),
    "a weight's transpose": lambda net, x: einsum("bld,do->blo", x, net.wide.weight.T),
    "the weight first": lambda net, x: einsum("od,bld->bol", net.wide.weight, x),
    "the features first": lambda net, x: einsum("bdl,do->blo", x.mT, net.wide.weight.t()),
    "features": lambda net, x: einsum("bd,od", x[:, 0], net.wide.weight),
    "any places": lambda net, x: einsum("...d,od->...o", heads(x).mT.flatten(2), net.wide.weight),
    "a buffer": lambda net, x: einsum("bld,od->blo", x, net.table),
    "attention": lambda net, x: einsum("bhqk,bkhd->bqhd", scores(net, x), heads(x)),
    "heads first": lambda net, x: einsum("bhqd,bhkd->bhqk", *[heads(net.q(x)).transpose(1, 2)] * 2),
    "two letters summed": lambda net, x: einsum("blhd,bmhd->blm", heads(net.q(x)), heads(x)),
    "a vector": lambda net, x: einsum("bld,d->bl", x, net.vector),
    "a matrix and a vector": lambda net, x: einsum("blm,bm->bl", x @ x.mT, x[..., 0]),
    "a sum": lambda net, x: einsum("bld->bd", x), "other places": lambda net, x: einsum("bld->dbl", x).transpose(0, 1),
    "place by place": lambda net, x: einsum("bld,bl,bld->bld", x, x[..., 1], net.q(x)),
    "outer": lambda net, x: einsum("bi,bj->bij", x[:, 0], x[:, 1]),
    "three": lambda net, x: einsum("bld,d,od->blo", x, net.vector, net.wide.weight),
}  # fmt: skip


@needs_kernels
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_and_inference(name: str) -> None:
    function = FUNCTIONS[name]
    names = " ".join(function.__code__.co_names) + " q" * ("scores" in function.__code__.co_names)
    net = Head(Tokens(function, names), (15,))
    check(net, (15,), batch=19, density=0.6)
    check_inference(net, (15,), density=0.6)


class Decoded(nn.Module):
    """Tokens whose layers are einsums."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.up, self.down = nn.Embedding(7, 6), nn.Linear(6, 9, bias=False), nn.Linear(9, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x)
        mixed = F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], is_causal=True)[:, 0]
        hidden = torch.tanh(einsum("bld,od->blo", mixed, self.up.weight))
        x = x + einsum("blo,do->bld", hidden, self.down.weight)
        found: Tensor = einsum("bld,vd->blv", x, self.tokens.weight)
        return found


@needs_kernels
def test_layers_of_tokens_that_are_generated() -> None:
    check_decoding(Decoded(), 9, 7, 0.6)


@needs_kernels
@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda net, x: einsum("bll->bl", x @ x.mT), "einsum"),
        (lambda net, x: einsum("bld,ldo->bo", x, net.wide.weight.view(5, 8, 1)), "matmul of"),
        (lambda net, x: x * einsum("bld,cld->b", x, x)[:, None, None], "sum over the batch"),
    ],
)
def test_refusals(function: Callable[[Any, Tensor], Tensor], words: str) -> None:
    model = lf.from_module(Head(Tokens(function, "wide"), (15,)), warn=False)
    with pytest.raises(lf.UserError, match=rf"no rule for {words}.* \(line \d+ of .*test_sparse_einsum.py"):
        lf.sparse_program(model, lf.init(model))(torch.zeros(1, 15))
