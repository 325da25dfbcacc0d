"""`lf.sparse_module` on networks of tokens and recurrent ones: on the machine, with the results of the eager module."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sparse_modules import check, check_gradients, pair, part
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.sparse.kernels import build

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))

VOCABULARY, LENGTH, WIDTH = 11, 9, 16


class Encoder(nn.Module):
    """Tokens, their places, a transformer's layer under a mask of padding, and a class for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Parameter(torch.randn(1, LENGTH, WIDTH) * 0.1)
        self.norm, self.qkv, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down, self.head = nn.Linear(WIDTH, 40), nn.Linear(40, WIDTH), nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens) + self.places[:, : tokens.shape[1]]
        q, k, v = (each.unflatten(-1, (4, -1)).transpose(1, 2) for each in self.qkv(self.norm(x)).chunk(3, -1))
        mask = (tokens != 0)[:, None, None, :]
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))
        found: Tensor = self.head(x + self.down(F.gelu(self.up(self.norm(x)))))
        return found


class Recurrent(nn.Module):
    """A sequence of numbers, two recurrent layers, and an operation that the machine has no rule for between them."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.LSTM(5, 8, batch_first=True), nn.GRU(8, 6, batch_first=True, bidirectional=True)
        self.between, self.head = between, nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.second(self.between(self.first(x)[0]))[0])
        return found


class Sentences(nn.Module):
    """Numbers beside tokens, two inputs and two outputs, in dimensions that PyTorch and the machine share."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix, self.head = nn.Embedding(VOCABULARY, 8), nn.Linear(12, 10), nn.Linear(10, 4)
        self.conv = nn.Conv1d(10, 6, 3, padding=1)

    def forward(self, tokens: Tensor, x: Tensor) -> dict[str, Tensor]:
        h = torch.tanh(self.mix(torch.cat([self.table(tokens), x], -1)))
        sorted_ones = torch.cumsum(self.head(h), 1)
        return {"sums": sorted_ones, "turned": h.transpose(1, 2), "conv": self.conv(h.transpose(1, 2)).mean(2)}


def compared(net: nn.Module, inputs: tuple[Tensor, ...], *, quiet: bool = True) -> Any:
    """The sparse module, whose outputs and gradients are those of a float64 one, in two sizes of batches."""
    found = pair(net)
    wide = copy.deepcopy(found.dense).double()
    with warnings.catch_warnings():
        if quiet:
            warnings.simplefilter("error")
        for count in (len(inputs[0]), 3):
            given = [each[:count] for each in inputs]
            doubles = [each.double() if each.is_floating_point() else each for each in given]
            ours, theirs = found.sparse(*given), wide(*doubles)
            pairs = zip(ours.values(), theirs.values(), strict=True) if isinstance(ours, dict) else [(ours, theirs)]
            loss: Any = 0.0
            other: Any = 0.0
            for mine, its in pairs:
                check("outputs", mine, its)
                direction = torch.randn(its.shape, generator=torch.Generator().manual_seed(count))
                loss, other = loss + (mine * direction).sum(), other + (its * direction).sum()
            for module, value in ((found.sparse, loss), (wide, other)):
                module.zero_grad()
                value.backward()
            check_gradients(found, wide)
    (call,) = list(found.sparse._calls.values())[-1:]
    return [each.machine for each in call._partition.parts]


def tokens(count: int = 20) -> Tensor:
    found = torch.randint(0, VOCABULARY, (count, LENGTH), generator=torch.Generator().manual_seed(0))
    found[:, 0] = 1
    return found


def test_a_transformer_runs_on_the_machine_alone() -> None:
    assert compared(Encoder(), (tokens(),)) == [True]


def test_recurrent_layers_run_on_the_machine_alone() -> None:
    assert compared(Recurrent(torch.tanh), (torch.randn(20, 7, 5),)) == [True]


@pytest.mark.filterwarnings("ignore:sparse_module")
def test_parts_of_sequences_take_turns_with_pytorch() -> None:
    machine = compared(Recurrent(lambda x: torch.cumsum(x, 1)), (torch.randn(20, 7, 5),), quiet=False)
    assert machine == [True, False, True]


@pytest.mark.filterwarnings("ignore:sparse_module")
def test_several_inputs_and_outputs_in_several_orders() -> None:
    machine = compared(Sentences(), (tokens(), torch.randn(20, LENGTH, 4)), quiet=False)
    assert True in machine


def test_a_loop_trains_a_transformer_as_the_eager_module() -> None:
    found = pair(Encoder())
    loops = []
    for module in (found.sparse, found.dense):
        optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
        losses = []
        for step in range(6):
            x = tokens(24)[step * 2 : step * 2 + 12]
            optimizer.zero_grad()
            loss = F.cross_entropy(module(x).flatten(0, 1), x.roll(1, 1).flatten())
            loss.backward()
            if module is found.dense:
                for name, leaf in module.named_parameters():
                    if name in found.masks and leaf.grad is not None:
                        leaf.grad.mul_(found.masks[name])
            optimizer.step()
            losses.append(float(loss))
        loops.append(losses)
    assert loops[0] == pytest.approx(loops[1], rel=1e-4)
    assert loops[0][-1] < loops[0][0]


def test_dropout_of_attention_draws_from_torchs_generator() -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.head = nn.Linear(8, 24), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (each.unsqueeze(1) for each in self.qkv(x).chunk(3, -1))
            dropped = F.scaled_dot_product_attention(q, k, v, dropout_p=0.5 if self.training else 0.0)
            found: Tensor = self.head(dropped.squeeze(1))
            return found

    sparse, x = pair(Dropping()).sparse, torch.randn(4, 6, 8)
    torch.manual_seed(0)
    first, second = sparse(x), sparse(x)
    torch.manual_seed(0)
    assert torch.equal(sparse(x), first)
    assert not torch.equal(first, second)
    sparse.eval()
    assert torch.equal(sparse(x), sparse(x))
    assert part(sparse, "qkv").weight.ndim == 1


def test_masks_of_a_transformer_change() -> None:
    found, x = pair(Encoder()), tokens()
    found.sparse(x).sum().backward()
    less = {name: mask & (torch.rand(mask.shape) < 0.5) for name, mask in found.masks.items()}
    found.sparse.set_masks(less, None)
    after = lf.sparse_module(found.sparse.dense(), less)
    assert torch.equal(found.sparse(x), after(x))
