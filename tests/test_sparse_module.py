"""`lf.sparse_module` computes what the masked dense module does, on the machine and in PyTorch's parts."""

from __future__ import annotations

import copy
import random
import re
import warnings
from typing import Any

import pytest
import random_networks
import torch
import torch.nn.functional as F
from network_engines import beginning
from sparse_modules import CLASSES, batch, check, check_gradients, masks_of, pair
from torch import Tensor, nn

from lthfunc.loops import sparse_module
from lthfunc.sparse import halves
from lthfunc.sparse.kernels import build

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))


def test_outputs_gradients_and_statistics_are_those_of_float64() -> None:
    """Of batches of several sizes, in any order, and with the gradient of the input."""
    found = pair()
    wide = copy.deepcopy(found.dense).double()
    for count in (20, 3, 33, 16):
        x, y = batch(count, seed=count)
        ours, theirs = x.clone().requires_grad_(), x.double().requires_grad_()
        found.sparse.zero_grad()
        wide.zero_grad()
        outputs, wanted = found.sparse(ours), wide(theirs)
        F.cross_entropy(outputs, y).backward()
        F.cross_entropy(wanted, y).backward()
        check("outputs", outputs, wanted)
        check("input", ours.grad, theirs.grad)
        check_gradients(found, wide)
    for (name, one), other in zip(found.sparse.named_buffers(), wide.buffers(), strict=True):
        check(name, one, other.double())


STRANGE = {
    "torch.relu(": "torch.erf(",
    "F.gelu(": "torch.sin(",
    "torch.flatten(": "(lambda v, n: v.reshape(len(v), -1))(",
}


@pytest.mark.parametrize("seed", [5, 12, 23, 47])
def test_random_networks_in_parts_are_those_of_float64(seed: int) -> None:
    """In training, evaluation and without gradients; with operations that the machine has no lowering for."""
    network = random_networks.drawn(seed)
    network.code = re.sub(r"F\.dropout\((\w+), [0-9.]+,", r"F.dropout(\1, 0.0,", network.code)
    for usual, strange in STRANGE.items():
        if random.Random(seed).random() < 0.7:
            network.code = network.code.replace(usual, strange, 1)
    _, state, data = beginning(network)
    net = network.module()
    with torch.no_grad():
        for name, leaf in net.named_parameters():
            leaf.copy_(state.params[name])
    found, x = pair(net, state.masks), data.train.x[: network.batch]
    wide = copy.deepcopy(net).double()
    for mode in (True, True, False):
        for module in (found.sparse, wide, net):
            module.train(mode).zero_grad()
        inputs = [each.clone().requires_grad_() for each in (x, x.double(), x)]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "sparse_module: ")
            outputs, wanted, eager = (
                module(each) for module, each in zip((found.sparse, wide, net), inputs, strict=True)
            )
        direction = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(seed))
        for each in (outputs, wanted, eager):
            each.backward(direction.to(each.dtype))
        check("outputs", outputs, wanted, eager)
        check("input", inputs[0].grad, inputs[1].grad, inputs[2].grad)
        check_gradients(found, wide, net)
        with torch.no_grad():
            module = copy.deepcopy(found.sparse)
            check("outputs without gradients", module(x), copy.deepcopy(wide)(x.double()), copy.deepcopy(net)(x))
    for (name, one), other, third in zip(found.sparse.named_buffers(), wide.buffers(), net.buffers(), strict=True):
        check(name, one, other.double(), third)


class Mixed(nn.Module):
    """Several inputs and outputs, tokens, a shared weight, a stretch without gradients, sums along the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(20, 12), nn.Parameter(torch.randn(1, 5, 12))
        self.read, self.conv, self.norm = (
            nn.Linear(60, 16),
            nn.Conv2d(1, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4),
        )
        self.head, self.other = nn.Linear(80, CLASSES), nn.Linear(16, 20)
        self.shared = nn.Linear(16, 16)

    def forward(self, tokens: Tensor, image: Tensor, scale: float = 1.0, *, shift: Tensor | None = None) -> Any:
        read = torch.relu(self.read((self.embed(tokens) + self.places).view(len(tokens), 60)))
        read = self.shared(torch.tanh(self.shared(read)))
        seen = F.max_pool2d(torch.relu(self.norm(self.conv(image))), 2)
        with torch.no_grad():
            mean = seen.mean()
        seen = (seen * mean).cumsum(1)
        logits = self.head(torch.cat([read, seen.flatten(1)], 1)) * scale
        return {"logits": logits if shift is None else logits + shift, "other": self.other(read), "name": "mixed"}


def test_what_the_machine_cannot_do_is_pytorchs_and_named_once() -> None:
    torch.manual_seed(0)
    net = Mixed()
    masks = {name: mask for name, mask in masks_of(net).items() if name != "places"}
    found = pair(net, masks)
    wide = copy.deepcopy(net).double()
    told = []
    for count in (7, 16, 7):
        tokens, image = torch.randint(20, (count, 5)), torch.randn(count, 1, 8, 8)
        shift = torch.randn(CLASSES)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            outputs = found.sparse(tokens, image, 2.0, shift=shift)
        told += [each for each in caught if "sparse_module" in str(each.message)]
        wanted = wide(tokens, image.double(), 2.0, shift=shift.double())
        for module, given in ((found.sparse, outputs), (wide, wanted)):
            module.zero_grad()
            (given["logits"].square().sum() + given["other"].sin().sum()).backward()
        assert outputs["name"] == "mixed"
        check("logits", outputs["logits"], wanted["logits"])
        check("other", outputs["other"], wanted["other"])
        check_gradients(found, wide)
    (once,) = told
    assert once.filename == __file__
    assert re.fullmatch(
        r"sparse_module: the sparse engine has no rule for mul of a tensor of shape \(\) in Mixed "
        r"\(line \d+ of .*: seen = .*\) and \d+ other operations; PyTorch computes them", str(once.message),
    )  # fmt: skip


OPTIMIZERS: dict[str, Any] = {
    "adam": lambda leaves: torch.optim.Adam(leaves, 0.01, weight_decay=0.01),
    "adamw fused": lambda leaves: torch.optim.AdamW(leaves, 0.01, fused=True),
    "sgd": lambda leaves: torch.optim.SGD(leaves, 0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "rmsprop foreach": lambda leaves: torch.optim.RMSprop(leaves, 0.01, momentum=0.5, foreach=True),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_loop_trains_as_that_of_the_masked_dense_module(kind: str) -> None:
    """With accumulated and clipped gradients, a last short batch, and other masks in the middle."""
    found = pair()
    optimizers = [OPTIMIZERS[kind](module.parameters()) for module in (found.dense, found.sparse)]
    masks, leaves = found.masks, dict(found.dense.named_parameters())

    def steps(seeds: range) -> None:
        for seed in seeds:
            for module, optimizer in zip((found.dense, found.sparse), optimizers, strict=True):
                optimizer.zero_grad()
                for part in (0, 1):
                    x, y = batch(20 if part == 0 else 5, seed=2 * seed + part)
                    F.cross_entropy(module(x), y).backward()
                for name, mask in masks.items() if module is found.dense else ():
                    grad = leaves[name].grad
                    assert grad is not None
                    grad.mul_(mask)
                nn.utils.clip_grad_norm_(module.parameters(), 0.5)
                optimizer.step()

    steps(range(4))
    before = masks
    less, more = masks_of(found.dense, 0.7, seed=1), masks_of(found.dense, 0.1, seed=2)
    masks = {name: (mask & less[name]) | more[name] for name, mask in masks.items()}
    traced: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse_module, "captured_call", lambda *given, **named: traced.append(given))
        found.sparse.set_masks(masks, optimizers[1])
        with torch.no_grad():
            for name, mask in masks.items():
                for leaf in (leaves[name], *optimizers[0].state[leaves[name]].values()):
                    if leaf.shape == mask.shape:
                        leaf.mul_(mask & before[name])
        steps(range(4, 8))
    assert not traced
    assert all(torch.equal(mask, masks[name]) for name, mask in found.sparse.masks.items())
    wanted = found.dense.state_dict()
    for name, leaf in found.sparse.state_dict().items():
        torch.testing.assert_close(leaf, wanted[name], rtol=2e-3, atol=2e-5, msg=name)


def test_a_pass_that_ends_after_python_has_cleared_the_module_gives_its_memory_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the interpreter's last step does it: each name of a module is None by then."""
    found = pair()
    outputs = found.sparse(batch(4, seed=0)[0])
    (call,) = found.sparse._calls.values()
    (owner,) = [each for parts in call._halves for each in parts.values()]
    assert owner.workspaces == []
    for name in [name for name in vars(halves) if not name.startswith("__")]:
        monkeypatch.setattr(halves, name, None)
    del outputs  # an error in a finaliser fails the test
    assert len(owner.workspaces) == 1
