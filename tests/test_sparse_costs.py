"""What the rule that picks between the sparse and a dense engine makes of layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
def test_a_frozen_layer_costs_its_product_and_the_gradient_of_its_input(kind: str) -> None:
    """Of the three products of a training: one where nothing before it is trained, or else two."""

    def work(before: Sequence[nn.Module], *, frozen: bool) -> float:
        net = nn.Sequential(*before, *FROZEN[kind]())
        for name, leaf in net[len(before)].named_parameters():
            leaf.requires_grad_(not frozen or (kind == "bias" and name != "bias"))
        model = lf.from_module(net, warn=False)
        layers = cost_model._layers(model, (LENGTH, WIDTH), False)
        return sum(layer.work for layer in layers if layer.name.startswith(f"{len(before)}."))

    for before, share in (([], 1 / 3), ([nn.Linear(WIDTH, WIDTH)], 2 / 3)):
        share = 1.0 if kind == "bias" else share
        assert work(before, frozen=True) == pytest.approx(share * work(before, frozen=False))


def test_a_network_with_a_frozen_layer_runs_sparse() -> None:
    frozen = FROZEN["linear"]()
    frozen[0].requires_grad_(False)
    model = lf.from_module(frozen, warn=False)
    assert is_faster(model, (LENGTH, WIDTH), {name: torch.zeros(3, LENGTH * 9) for name in model.prunable})


@pytest.mark.parametrize(("wide", "survivor"), [(False, 1.35), (True, 1.62)])
def test_a_layer_of_tokens_costs_the_same_however_it_is_written(
    wide: bool, survivor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Multiply-adds follow from the examples, not from the first dimension. wide: on AMD's Zen 5."""
    for fact in ("has_wide_amd_cores", "have_avx512"):
        monkeypatch.setattr(cost_model, fact, lambda: wide)
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
    assert sparse == pytest.approx(LENGTH * WIDTH * 9 * (survivor * 0.5 + 0.2) + LENGTH * 9 * 3 * 0.95)
