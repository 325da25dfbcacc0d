"""What the rule that picks between the sparse and a dense engine makes of layers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.sparse import cost_model
from lthfunc.sparse.cost_model import is_faster

LENGTH, WIDTH = 6, 8
FROZEN: dict[str, Callable[[], nn.Sequential]] = {
    "linear": lambda: nn.Sequential(nn.Linear(WIDTH, 9), nn.Flatten(), nn.Linear(LENGTH * 9, 3)),
    "bias": lambda: nn.Sequential(nn.Linear(WIDTH, 9), nn.Flatten(), nn.Linear(LENGTH * 9, 3)),
    "convolution": lambda: nn.Sequential(nn.Conv1d(LENGTH, 4, 3), nn.Flatten(), nn.Linear(24, 3)),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose1d(LENGTH, 4, 3), nn.Flatten(), nn.Linear(40, 3)),
    "recurrent": lambda: nn.Sequential(Outputs(nn.LSTM(WIDTH, 5, batch_first=True)), nn.Flatten(), nn.Linear(30, 3)),
}


class Outputs(nn.Module):
    """A recurrent layer without its states."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x)[0]
        return found


@pytest.mark.parametrize("kind", FROZEN)
def test_a_frozen_layer_is_left_to_the_dense_engine(kind: str) -> None:
    """It has no instructions with frozen weights, however sparse the others are."""
    net, shape = FROZEN[kind](), (LENGTH, WIDTH)
    sparse = {name: torch.zeros(leaf.shape) for name, leaf in net.named_parameters() if leaf.ndim > 1}
    assert is_faster(lf.from_module(net, warn=False), shape, sparse)
    frozen = FROZEN[kind]()
    for name, leaf in frozen[0].named_parameters():
        leaf.requires_grad_(kind == "bias" and name != "bias")
    model = lf.from_module(frozen, warn=False)
    assert not is_faster(model, shape, {name: mask for name, mask in sparse.items() if name in model.prunable})
    assert cost_model.relative_time("sparse/eager", model, shape, dict.fromkeys(model.prunable, 0.1)) == 1.0


def test_a_layer_of_tokens_costs_the_same_however_it_is_written() -> None:
    """Multiply-adds follow from the examples, not from the first dimension."""
    spellings: list[Callable[[nn.Module, Tensor], Tensor]] = [
        lambda layer, x: layer(x).flatten(1),
        lambda layer, x: layer(x.transpose(0, 1)).transpose(0, 1).flatten(1),
        lambda layer, x: layer(x.reshape(-1, WIDTH)).reshape(len(x), -1),
    ]

    class Spelled(nn.Module):
        def __init__(self, body: Callable[[nn.Module, Tensor], Tensor]) -> None:
            super().__init__()
            self.body, self.layer, self.head = body, nn.Linear(WIDTH, 9), nn.Linear(LENGTH * 9, 3)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.head(torch.relu(self.body(self.layer, x)))
            return found

    times = {
        cost_model._times(lf.from_module(Spelled(body), warn=False), (LENGTH, WIDTH), {"layer.weight": 0.5})
        for body in spellings
    }
    ((sparse, dense),) = times
    assert dense == LENGTH * WIDTH * 9 + LENGTH * 9 * 3
    assert sparse == pytest.approx(LENGTH * WIDTH * 9 * (1.35 * 0.5 + 0.2) + LENGTH * 9 * 3 * 0.95)
