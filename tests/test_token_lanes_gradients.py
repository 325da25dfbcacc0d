"""Gradients of few sequences, whose tokens are lanes, against float64 networks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from sparse_programs import TOLERANCE, kernels  # noqa: F401
from test_decoding import Gated
from token_lanes import batch_of, gradients_on, network, program_for, ticket
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.models.transformers import CharTransformer
from lthfunc.sparse.kernels import build
from lthfunc.sparse.kernels.instructions import OPCODES, column_of
from lthfunc.sparse.workspace import Workspace
from lthfunc.trees.model import apply_training

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))


def check(net: nn.Module, n: int, length: int, vocabulary: int, density: float) -> list[int]:
    """Loss and gradients on lanes of tokens are those of the network in float64. Returns the program's opcodes."""
    model = network(net)
    state, (x, y) = ticket(model, density), batch_of(n, length, vocabulary)
    program = program_for(model, state, n, length)
    workspace = Workspace(program, state.params, state.buffers)
    for _ in range(2):  # the second time, in memory that the first has used
        workspace.totals.zero_()
        workspace.run(x[None], y[None])
    ours = workspace.dense(workspace.gradients)
    wide = {name: leaf.double() if leaf.is_floating_point() else leaf for name, leaf in state.buffers.items()}

    def loss(params: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(apply_training(model, params, wide, x)[0].flatten(0, 1), y.flatten())

    grads, value = torch.func.grad_and_value(loss)({name: leaf.double() for name, leaf in state.params.items()})
    assert float(workspace.totals[0]) == pytest.approx(float(value), rel=1e-5)
    for name, grad in grads.items():
        expected = grad * state.masks[name] if name in state.masks else grad
        scale = float(expected.abs().max()) + 1e-4
        difference = float((ours[name].double() - expected).abs().max())
        assert difference <= TOLERANCE * scale + 1e-6, (name, difference, scale)
    opcodes: list[int] = program.code.rows[:, 0].tolist()
    return opcodes


@pytest.mark.parametrize(
    ("n", "length", "heads", "each", "density"),
    [(2, 48, 2, 16, 0.3), (5, 21, 3, 5, 1.0), (7, 17, 1, 23, 0.1), (3, 7, 2, 4, 0.0), (1, 33, 2, 6, 0.5)],
)
def test_gradients_of_transformers(n: int, length: int, heads: int, each: int, density: float) -> None:
    """Sequences of whole tiles and of parts of them, features of whole registers and of parts of them."""
    torch.manual_seed(length)
    net = CharTransformer((length,), 13, layers=1, heads=heads, width=heads * each, tied=n == 5)
    opcodes = check(net, n, length, 13, density)
    assert OPCODES["token_attention_gradient"] in opcodes
    assert OPCODES["attention_gradient"] not in opcodes


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_networks_of_ones_own(masked: bool) -> None:
    """Grouped queries, rotated by a table that is a buffer, and a table of places that is pruned, and read in part."""
    torch.manual_seed(0)
    net = Gated(35, masked=masked)
    net.places = nn.Embedding(41, 24)
    check(net, 4, 35, 11, 0.5)


class Encoder(nn.Module):
    """Attention in both directions, of a learned part of a table of places."""

    def __init__(self, length: int, *, same: bool = False) -> None:
        super().__init__()
        self.tokens, self.table = nn.Embedding(11, 12), nn.Parameter(0.1 * torch.randn(1, 2, length + 3, 6))
        self.qkv, self.head, self.same = nn.Linear(12, 12 if same else 36), nn.Linear(12, 11), same

    def forward(self, x: Tensor) -> Tensor:
        places = self.table[:, :, 2 : 2 + x.shape[1]].transpose(1, 2).flatten(2)
        x = self.tokens(x) + places
        q, k, v = (
            each.unflatten(-1, (2, 6)).transpose(1, 2)
            for each in ([self.qkv(x)] * 3 if self.same else self.qkv(x).chunk(3, -1))
        )
        found: Tensor = self.head(x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return found


@pytest.mark.parametrize("same", [False, True])
def test_gradients_of_attention_in_both_directions(same: bool) -> None:
    """No token reads those that fill tiles up. Operands that are one value have their gradients added."""
    torch.manual_seed(0)
    check(Encoder(21, same=same), 3, 21, 11, 0.6)


def test_inference_of_attention_in_both_directions() -> None:
    torch.manual_seed(0)
    model = network(Encoder(21))
    state, (x, _) = ticket(model, 0.6), batch_of(3, 21, 11)
    run = lf.sparse_program(model, state)
    torch.testing.assert_close(run(x), apply_training(model, state.params, state.buffers, x)[0], rtol=1e-5, atol=1e-5)
    (made,) = run._lanes.values()
    assert OPCODES["token_attention"] in made.workspace.program.code.rows[:, 0].tolist()


def test_any_number_of_threads_gives_the_same_bits() -> None:
    model = lf.models.char_transformer((40,), 13, layers=2, width=24)
    state, batch = ticket(model, 0.3), batch_of(6, 40, 13)
    program = program_for(model, state, 6, 40)
    assert torch.equal(*(gradients_on(threads, state, program, batch) for threads in (1, 2)))


@pytest.mark.parametrize("name", ["load_place_values", "place_gradients"])
@pytest.mark.parametrize("place", [-2, 2**31 - 1])
def test_places_outside_a_table_are_refused(name: str, place: int) -> None:
    model = lf.models.char_transformer((20,), 13, layers=1, width=8, heads=2)
    code = program_for(model, ticket(model, 0.5), 3, 20).code
    (row,) = code.rows[code.rows[:, 0] == OPCODES[name]].tolist()
    lists = code.lists.clone()
    lists[row[column_of(name, "places")] + 1] = place
    with pytest.raises(ValueError, match=rf"lthfunc: instruction \d+ \({name}\): "):
        torch.ops.lthfunc.make_program(
            code.rows, lists, code.vectors, code.local, code.values, code.trained, len(code.constants), code.batch
        )
