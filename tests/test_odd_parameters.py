"""Complex weights, layers that are called twice, and masks of vectors."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import lthfunc as lf
from lthfunc.sparse.cost_model import why_not_sparse
from lthfunc.sparse.kernels import build
from lthfunc.training.engines.interface import Work
from lthfunc.trees.types import Dataset

needs_kernels = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))


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


@needs_kernels
@pytest.mark.parametrize("name", ["1.bias", "2.weight"])
def test_a_masked_vector_trains_or_is_refused_by_its_name(name: str, few_digits: Dataset) -> None:
    """Of numbers alone, the sparse engine has no survivors."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 10))
    model = lf.from_module(net, prunable=("1.weight", name))
    start = lf.init(model, 1)
    masks = {leaf: torch.arange(mask.numel()).view(mask.shape) % 3 > 0 for leaf, mask in start.masks.items()}
    start = start._replace(masks=masks, params=lf.apply_masks(start.params, masks))
    train = partial(lf.train, model, few_digits, optimizer=lf.sgd(0.1), steps=4, batch_size=8)
    ended = train(engine="eager")(start)
    assert not ended.params[name][~masks[name]].any()
    assert not lf.same_bits(ended.params[name], start.params[name])
    words = rf"^engine: sparse prunes matrices and kernels alone, and {name} has a mask and 1 dimension; use eager"
    with pytest.raises(lf.UserError, match=words):
        train(engine="sparse")(start)
    work = Work(model, lf.cross_entropy, lf.sgd(0.1), None, None, "fp32")
    assert re.match(words, str(why_not_sparse(work, (1, 8, 8), torch.float32)))
    outputs = lf.sparse_program(model, start)(few_digits.test.x)
    wanted = functional_call(model.evaluating, (start.params, start.buffers), (few_digits.test.x,))
    torch.testing.assert_close(outputs, wanted)
