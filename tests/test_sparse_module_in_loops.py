"""`lf.sparse_module` is an ordinary module: graphs, modes, copies, state dicts, other masks; and what it refuses."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sparse_modules import batch, check, check_gradients, convolutional, masks_of, pair, part
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.sparse.kernels import build

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))


def test_a_graph_may_hold_several_calls_and_be_taken_twice() -> None:
    found = pair()
    wide = copy.deepcopy(found.dense).double()
    (x, y), (other, _) = batch(20), batch(20, seed=1)
    for module, inputs in ((found.sparse, (x, other)), (wide, (x.double(), other.double()))):
        first, second = module(inputs[0]), module(inputs[1])
        loss = F.cross_entropy(first, y) + (first * second.detach()).sum() + second.sin().sum()
        loss.backward(retain_graph=True)
        loss.backward()
    check_gradients(found, wide)
    spent = found.sparse(x).sum()
    spent.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        spent.backward()
    (grad,) = torch.autograd.grad(found.sparse(x).square().sum(), [part(found.sparse, "0").weight], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_without_gradients_no_graph_is_made() -> None:
    found = pair()
    x, _ = batch(33)
    wide = copy.deepcopy(found.dense).double()
    for module in (found.sparse, wide):
        module.eval()
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            outputs = found.sparse(x)
            assert not outputs.requires_grad
            check("outputs", outputs, wide(x.double()))
    assert found.sparse(x).requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert found.sparse(x).dtype == torch.float32
    assert found.sparse(x[:0]).shape == (0, 3)


def test_frozen_parameters_and_frozen_statistics() -> None:
    found = pair()
    wide = copy.deepcopy(found.dense).double()
    before = copy.deepcopy(found.sparse.state_dict())
    x, y = batch(20)
    for module, inputs in ((found.sparse, x), (wide, x.double())):
        part(module, "1").eval()
        part(module, "4").requires_grad_(False)
        F.cross_entropy(module(inputs), y).backward()
    assert part(found.sparse, "4").weight.grad is None
    check_gradients(found, wide)
    assert lf.same_bits(dict(found.sparse.state_dict()), dict(before))


def test_threads_and_earlier_calls_change_no_bit() -> None:
    def gradients(threads: int, *counts: int) -> dict[str, Tensor]:
        sparse, before = pair().sparse, torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            for count in counts:
                sparse.zero_grad()
                part(sparse, "1").reset_running_stats()
                x, y = batch(count)
                F.cross_entropy(sparse(x), y).backward()
        finally:
            torch.set_num_threads(before)
        return {name: leaf.grad for name, leaf in sparse.named_parameters() if leaf.grad is not None}

    assert lf.same_bits(gradients(1, 300), gradients(2, 500, 20, 300))


def test_dropout_draws_from_torchs_generator() -> None:
    """As `nn.Dropout` does: the same numbers after the same seed, and the same places in both directions."""
    every = {"1.weight": torch.ones(3, 400, dtype=torch.bool)}
    sparse = pair(nn.Sequential(nn.Dropout(0.3), nn.Linear(400, 3)), every).sparse
    x = torch.ones(64, 400)

    def outputs() -> Tensor:
        found: Tensor = sparse(x)
        return found

    torch.manual_seed(3)
    first, second = outputs(), outputs()
    torch.manual_seed(3)
    again = outputs()
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    leaf = x.clone().requires_grad_()
    torch.manual_seed(3)
    sparse(leaf).sum().backward()
    assert leaf.grad is not None
    places = leaf.grad != 0
    assert float(places.float().mean()) == pytest.approx(0.7, abs=0.02)
    kept = torch.where(places, x / 0.7, 0)
    torch.testing.assert_close(first, F.linear(kept, sparse.state_dict()["1.weight"], part(sparse, "1").bias))
    state = torch.get_rng_state()
    sparse.eval()(x)
    assert torch.equal(state, torch.get_rng_state())


def test_a_state_dict_is_dense_both_ways() -> None:
    found = pair()
    ours = found.sparse.state_dict()
    assert lf.same_bits(dict(ours), dict(found.dense.state_dict()))
    assert list(ours) == list(found.dense.state_dict())
    other = pair(masks=found.masks)
    with torch.no_grad():
        for leaf in (*found.sparse.parameters(), part(found.sparse, "1").running_mean):
            leaf.add_(1)
    whole = nn.ModuleDict({"net": other.sparse})
    whole.load_state_dict({f"net.{name}": leaf for name, leaf in found.sparse.state_dict().items()})
    assert lf.same_bits(dict(other.sparse.state_dict()), dict(found.sparse.state_dict()))
    assert lf.same_bits(dict(whole.state_dict()), {f"net.{n}": v for n, v in found.sparse.state_dict().items()})
    dense = found.sparse.dense()
    assert type(dense) is nn.Sequential
    x, _ = batch(4)
    check("outputs", found.sparse(x), dense.double()(x.double()))
    state = found.sparse.state
    assert lf.same_bits(state.masks, found.masks)
    assert lf.same_bits(found.sparse.ticket(), lf.ticket(state))
    wrong = found.sparse.state_dict()
    wrong["0.weight"] = torch.ones_like(wrong["0.weight"])
    with pytest.raises(lf.UserError, match=r"0\.weight has \d+ weights other than zero that are pruned here"):
        other.sparse.load_state_dict(wrong)
    wrong["0.weight"] = torch.ones(3)
    with pytest.raises(lf.UserError, match=r"0\.weight is of shape \(3,\), here \(6, 2, 3, 3\)"):
        other.sparse.load_state_dict(wrong)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda sparse: pickle.loads(pickle.dumps(sparse))])
def test_copies_train_apart(copied: Callable[[Any], Any]) -> None:
    found = pair()
    x, y = batch(20)
    found.sparse(x)
    other = copied(found.sparse)
    before = copy.deepcopy(dict(found.sparse.state_dict()))
    optimizer = torch.optim.SGD(other.parameters(), 0.1)
    F.cross_entropy(other(x), y).backward()
    optimizer.step()
    assert lf.same_bits(dict(found.sparse.state_dict()), before)
    assert not lf.same_bits(dict(other.state_dict()), before)
    other.set_masks({name: torch.zeros_like(mask) for name, mask in other.masks.items()}, None)
    assert lf.count(other.masks).kept == 0
    assert lf.same_bits(found.sparse.masks, found.masks)
    other(x).sum().backward()
    kept = io.BytesIO()
    torch.save(other.state_dict(), kept)
    kept.seek(0)
    other.load_state_dict(torch.load(kept, weights_only=True))


def test_masks_change_under_a_graph_that_is_still_there() -> None:
    """The last loss is still in scope when a loop sets other masks."""
    found = pair()
    x, y = batch(20)
    loss = F.cross_entropy(found.sparse(x), y)
    loss.backward()
    grad = found.sparse.state_dict()["0.weight"].clone()
    grad[found.masks["0.weight"]] = part(found.sparse, "0").weight.grad
    less = {name: mask & other for (name, mask), other in
            zip(found.masks.items(), masks_of(found.dense, 0.5, seed=3).values(), strict=True)}  # fmt: skip
    found.sparse.set_masks(less, None)
    assert torch.equal(part(found.sparse, "0").weight.grad, grad[less["0.weight"]])
    found.sparse.zero_grad()
    loss = F.cross_entropy(found.sparse(x), y)
    loss.backward()
    after = pair(copy.deepcopy(found.dense), less)
    part(after.sparse, "1").load_state_dict(part(found.sparse, "1").state_dict())
    F.cross_entropy(after.sparse(x), y).backward()
    for one, other in zip(found.sparse.parameters(), after.sparse.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(torch.tanh(self.two(torch.tanh(self.one(x)))))
        return found


@pytest.mark.filterwarnings("ignore:sparse_module")
def test_shared_weights_stay_shared() -> None:
    found = pair(Tied())
    wide, x = copy.deepcopy(found.dense).double(), torch.randn(5, 8)
    found.sparse(x).sum().backward()
    wide(x.double()).sum().backward()
    check_gradients(found, wide)
    assert lf.same_bits(dict(found.sparse.state_dict()), dict(found.dense.state_dict()))
    assert part(copy.deepcopy(found.sparse), "two").weight is not part(found.sparse, "one").weight
    assert part(found.sparse.dense(), "two").weight.shape == (8, 8)
    found.sparse.load_state_dict(found.dense.state_dict())


def test_torch_compile_leaves_it_as_it_is() -> None:
    found = pair()
    x, y = batch(20)
    compiled: Any = torch.compile(nn.Sequential(nn.Tanh(), copy.deepcopy(found.sparse)), backend="eager")
    F.cross_entropy(compiled(x), y).backward()
    F.cross_entropy(found.sparse(torch.tanh(x)), y).backward()
    for one, other in zip(compiled.parameters(), found.sparse.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)


class Odd(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.bias.mul_(0.9)
        return super().forward(x)


def refused(how: str) -> Any:
    net, masks = convolutional(), masks_of(convolutional())
    sparse = lf.sparse_module(net, masks)
    bias, ones = {"7.bias": torch.zeros(12, dtype=torch.bool)}, torch.ones(1, 2, 8, 8)
    lbfgs = torch.optim.LBFGS(sparse.parameters())

    def closure() -> Tensor:
        loss: Tensor = sparse(ones.repeat(4, 1, 1, 1)).square().sum()
        loss.backward()
        return loss

    calls: dict[str, Callable[[], Any]] = {
        "unknown": lambda: lf.sparse_module(net, {"9.x": masks["0.weight"]}),
        "shape": lambda: lf.sparse_module(net, {"0.weight": masks["4.weight"]}),
        "floats": lambda: lf.sparse_module(net, {"0.weight": masks["0.weight"].float()}),
        "bias": lambda: lf.sparse_module(net, bias),
        "again": lambda: lf.sparse_module(nn.Sequential(sparse), masks),
        "double": lambda: lf.sparse_module(convolutional().double(), masks),
        "meta": lambda: lf.sparse_module(convolutional().to("meta"), masks),
        "to": lambda: sparse.to("meta"),
        "half": lambda: nn.Sequential(sparse).half(),
        "inputs": lambda: sparse(ones.double()),
        "elsewhere": lambda: sparse(ones.to("meta")),
        "no batch": lambda: sparse(torch.tensor(1.0)),
        "changes": lambda: lf.sparse_module(Odd(4, 2), {})(torch.ones(3, 4)),
        "masks": lambda: sparse.set_masks({"0.weight": masks["7.weight"]}, None),
        "stranger": lambda: sparse.set_masks(masks, torch.optim.SGD(net.parameters())),
        "no optimiser": lambda: sparse.set_masks(masks, net),  # type: ignore[arg-type]
        "lbfgs": lambda: (lbfgs.step(closure), sparse.set_masks(masks, lbfgs)),  # type: ignore[func-returns-value]
        "attach": lambda: lf.attach(sparse, torch.optim.SGD(sparse.parameters()), lf.prune(fraction=0.2)),
    }
    return calls[how]()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("unknown", r"sparse_module: masks: '9\.x' is not a parameter of this network \(0\.weight, "),
        ("shape", r"masks: '0\.weight' is of shape \(4, 6, 3, 3\), the parameter \(6, 2, 3, 3\)"),
        ("floats", "sparse_module: masks must be a dict of bool tensors"),
        ("bias", r"masks: '7\.bias' has one dimension; only matrices and kernels are pruned"),
        ("again", "module is sparse already; set_masks gives it other masks"),
        ("double", r"sparse_module: computes in float32; 0\.weight is float64"),
        ("meta", r"sparse_module: computes on the CPU; 0\.weight is on meta"),
        ("to", r"computes in float32 on the CPU, not in float32 on meta; dense\(\) gives a module for it"),
        ("half", "not in float16 on cpu"),
        ("inputs", "computes in float32; an input is float64"),
        ("elsewhere", "computes on the CPU; an input is on meta"),
        ("no batch", "takes a batch: a tensor with examples along its first dimension"),
        ("changes", r"mul \(line \d+ of .*\) changes the parameter bias"),
        ("masks", r"set_masks: masks: '0\.weight' is of shape \(12, 16\)"),
        ("stranger", "set_masks: optimizer owns no parameter of this module"),
        ("no optimiser", r"set_masks: optimizer must be a torch\.optim\.Optimizer"),
        ("lbfgs", "LBFGS keeps '.*' of 0.weight for no single weights; make a new one instead"),
        ("attach", "attach: module is an lf.sparse_module"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(how: str, words: str) -> None:
    with pytest.raises(lf.UserError, match=words) as caught:
        refused(how)
    assert "\n" not in str(caught.value)
