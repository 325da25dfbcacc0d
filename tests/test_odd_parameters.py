"""Complex weights, and layers that are called twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lthfunc as lf


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_complex_weights_train_as_torchs_and_real_ones_stay_real(name: str) -> None:
    class Waves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(6, 8, dtype=torch.complex64)
            self.gain, self.fc = nn.Parameter(torch.ones(8)), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc((self.first(x.to(torch.complex64)) * self.gain).abs())
            return out

    module = Waves()
    model = lf.from_module(module)
    start = lf.init(model, 1)
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 6, generator=draw), torch.randint(0, 3, (40,), generator=draw)
    ours = lf.sgd(0.1, 0.9) if name == "sgd" else lf.adam(1e-2)
    step, state = lf.make_train_step(model, lf.cross_entropy, ours), lf.with_optimizer(start, ours)
    module.load_state_dict(start.params)
    make: Any = torch.optim.SGD if name == "sgd" else torch.optim.Adam
    theirs = make(module.parameters(), **({"lr": 0.1, "momentum": 0.9} if name == "sgd" else {"lr": 1e-2}))
    for _ in range(4):
        state, _ = step(state, (x, y))
        theirs.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        theirs.step()
    for key, leaf in module.state_dict().items():
        assert state.params[key].dtype == leaf.dtype
        torch.testing.assert_close(state.params[key], leaf, rtol=1e-3, atol=1e-4)


def test_inputs_of_a_layer_called_twice_and_of_a_shared_weight_are_all_counted() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 2)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            first = self.a(x)
            second = self.b(torch.tanh(first))
            self_made = nn.functional.linear(torch.relu(second), self.a.weight)
            first += 1  # what was read has been read
            found: Tensor = self.out(self.a(self_made) + first)
            return found

    model = lf.from_module(Twice())
    state = lf.init(model, 2)
    x = torch.randn(30, 5)
    w, p = state.params["a.weight"], state.params
    reads = [x]
    first = x @ w.T + p["a.bias"]
    reads.append(first.tanh())
    second = reads[1] @ w.T + p["b.bias"]
    reads.append(second.relu())
    reads.append(reads[2] @ w.T)
    rows = torch.cat(reads).double()
    torch.testing.assert_close(lf.input_moments(model, state, [x])["a.weight"], rows.T @ rows / len(rows))
