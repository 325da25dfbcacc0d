"""Pruning block by block: memory, any network of blocks, and what it refuses."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.trees.block_walk import block_names

WIDTH = 16
X = [torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(n)) for n in (40, 40, 23)]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 24), nn.Linear(24, WIDTH)

    def forward(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
        out: Tensor = x + self.down(torch.relu(self.up(x)))
        return out if extra is None else out + extra


class Net(nn.Module):
    """Blocks in a list, called in one way or another."""

    def __init__(self, blocks: int = 3, way: str = "in turn") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.blocks, self.last = nn.Linear(WIDTH, WIDTH), nn.ModuleList(), nn.Linear(WIDTH, 3)
        self.blocks.extend(Block() for _ in range(blocks))
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        h = first = self.first(x)
        before: Tensor | None = None
        for number, block in enumerate(self.blocks):
            extra = {"with the first": first, "with the one before": before}.get(self.way)
            before = h if number else None
            h = block(h.mul_(1.01), extra)  # what lies between blocks, in place
        if self.way == "twice":
            h = self.blocks[0](h)
        out: Tensor = self.last(h)
        return out


def made(**options: Any) -> tuple[lf.Model, lf.TrainState]:
    model = lf.from_module(Net(**options), init=lf.as_built)
    return model, lf.init(model)


def whole(model: lf.Model, state: lf.TrainState, density: float) -> lf.TrainState:
    """Layer by layer, each block with the moments of the whole network as it is then."""
    for number in range(3):
        names = [name for name in model.prunable if f"blocks.{number}." in name]
        moments = lf.input_moments(model, state, X)
        here = {name: moments[name] for name in names}
        state = lf.sparsegpt(here, density)(state)
    return state


@pytest.mark.parametrize("way", ["in turn", "with the first"])
def test_it_is_what_whole_calls_of_the_network_find(way: str) -> None:
    model, start = made(way=way)
    start = lf.prune(density=0.9, select=lf.per_output(), allocate=lf.uniform())(
        start
    )  # a state that was pruned before
    pruned = lf.prune_sequentially(model, X, 0.5)(start)
    blocks = {name for name in model.prunable if name.startswith("blocks")}
    other = whole(model, start, 0.5)
    assert lf.same_bits(pruned.masks, other.masks)
    for name, leaf in pruned.params.items():
        torch.testing.assert_close(leaf, other.params[name])
    assert lf.count({name: pruned.masks[name] for name in blocks}).density == 0.5
    assert all((pruned.masks[name] <= start.masks[name]).all() for name in blocks)
    assert lf.same_bits(pruned.masks["last.weight"], start.masks["last.weight"])


class Memory(TorchDispatchMode):
    """The most bytes that tensors made within hold at a time."""

    now: int
    most: int

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now, self.most, self.held = 0, 0, set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in made if isinstance(made, (list, tuple)) else [made]:
            if isinstance(leaf, Tensor) and leaf.device.type == "cpu":
                self.note(leaf.untyped_storage())
        return made

    def note(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.held:
            self.held.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self.drop, key, size)

    def drop(self, key: int, size: int) -> None:
        self.held.discard(key)
        self.now -= size


def test_memory_grows_by_weights_and_masks_alone() -> None:
    """With the number of blocks: neither what several blocks return, nor moments of several, are there at a time."""

    def most(blocks: int) -> tuple[int, int]:
        model, state = made(blocks=blocks)
        with Memory() as memory:
            pruned = lf.prune_sequentially(model, X, 0.5, budgets=lf.owl())(state)
        return memory.most, sum(leaf.nbytes for leaf in (*pruned.params.values(), *pruned.masks.values()))

    (few, small), (many, large) = most(2), most(6)
    assert few > sum(x.nbytes for x in X)  # within the network
    assert many - few <= 2 * (large - small)  # a copy, and the pruned ones; moments of a block would be as much again


def test_blocks_are_found() -> None:
    def found(name: str, *patterns: str, **options: str) -> tuple[str, ...]:
        shape = (8,) if name == "char-transformer" else (1, 28, 28)
        return block_names(getattr(lf.models, name.replace("-", "_"))(shape, 10, **options), patterns)

    assert found("lenet300") == ("fc1", "fc2", "fc3")
    assert found("lenet300", "fc[12]") == ("fc1", "fc2")
    assert len(found("resnet20")) == 9
    assert block_names(made()[0]) == ("blocks.0", "blocks.1", "blocks.2")


@pytest.mark.parametrize("name", ["lenet5", "resnet20"])
def test_networks_of_the_catalogue(name: str) -> None:
    model = getattr(lf.models, name)((3, 16, 16) if name != "lenet5" else (1, 28, 28), 10)
    start, blocks = lf.init(model), block_names(model)
    x = torch.rand(20, *((3, 16, 16) if name != "lenet5" else (1, 28, 28)))
    pruned = lf.prune_sequentially(model, [x[:12], x[12:]], 0.5, pruning=lf.wanda_pruning())(start)
    held = {
        each: mask for each, mask in pruned.masks.items() if each.startswith(tuple(f"{block}." for block in blocks))
    }
    assert lf.count(held).kept == round(lf.count(held).total / 2)
    assert lf.density({each: mask for each, mask in pruned.masks.items() if each not in held}) == 1


def test_conv1d_of_transformers_is_pruned_as_the_linear_layer_that_it_is() -> None:
    pytest.importorskip("transformers")
    from transformers import pytorch_utils

    conv1d: Any = pytorch_utils.Conv1D
    torch.manual_seed(0)
    turned = nn.Sequential(nn.Sequential(conv1d(24, WIDTH), nn.GELU()), nn.Sequential(conv1d(WIDTH, 24), nn.GELU()))
    plain = nn.Sequential(
        nn.Sequential(nn.Linear(WIDTH, 24), nn.GELU()), nn.Sequential(nn.Linear(24, WIDTH), nn.GELU())
    )
    plain.load_state_dict({name: leaf.T if leaf.ndim == 2 else leaf for name, leaf in turned.state_dict().items()})
    for pruning in (lf.wanda_pruning(), lf.sparsegpt_pruning(block=8)):
        found = []
        for net in (turned, plain):
            model = lf.from_module(net, init=lf.as_built)
            found.append(lf.prune_sequentially(model, X, 0.5, pruning=pruning)(lf.init(model)).params)
        for name, leaf in found[1].items():
            torch.testing.assert_close(found[0][name].T if leaf.ndim == 2 else found[0][name], leaf)


def refused(model: lf.Model, state: lf.TrainState, **options: Any) -> str:
    given: dict[str, Any] = {"inputs": X, "density": 0.5} | options
    with pytest.raises(UserError) as error:
        lf.prune_sequentially(model, given.pop("inputs"), given.pop("density"), **given)(state)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_cannot_work_is_refused_in_one_line() -> None:
    for way, words in {
        "with the one before": "blocks: blocks.2 reads more than what blocks.1 returns; name larger blocks",
        "twice": "blocks: blocks.0 is called 2 times (expected once)",
    }.items():
        model, state = made(way=way)
        assert words in refused(model, state)
    model, state = made()
    assert "invalid value [] (expected one batch or more, of one e" in refused(model, state, inputs=[])
    assert "blocks: invalid value 'blocks.9'" in refused(model, state, blocks=["blocks.9"])
    assert "blocks: blocks.0.up is within blocks.0" in refused(model, state, blocks=["blocks.0", "blocks.0.up"])
    assert "density: invalid value 1.5" in refused(model, state, density=1.5)
    assert "cannot take inputs of shape (3,)" in refused(model, state, inputs=[torch.ones(2, 3)])
    assert "inputs: blocks.0 gets numbers that are none (NaN)" in refused(model, state, inputs=[X[0] * torch.nan])
    shared = Net()
    shared.blocks[1] = shared.blocks[0]
    model = lf.from_module(shared, init=lf.as_built)
    assert "blocks: blocks.0 is used in several places" in refused(model, lf.init(model))
    encoder = nn.Sequential(nn.TransformerEncoderLayer(WIDTH, 2, 8, batch_first=True), nn.Linear(WIDTH, 2))
    model = lf.from_module(encoder, init=lf.as_built)
    assert "never_prune=['0.self_attn.in_proj_weight']" in refused(
        model, lf.init(model), inputs=[x[:, None] for x in X], blocks=["0"]
    )
    model = lf.with_prunable(model, never_prune=["*.in_proj_weight"])
    assert "the inputs of 0.self_attn.out_proj.weight can't be read" in refused(
        model, lf.init(model), inputs=[x[:, None] for x in X], blocks=["0"]
    )
    with pytest.raises(UserError, match="moments: are diagonals alone"):
        lf.sparsegpt(lf.input_moments(model, lf.init(model), [], diagonal=True), density=0.5)(lf.init(model))
    with pytest.raises(UserError, match="threshold: invalid value"):
        lf.owl(0)
    with pytest.raises(UserError, match="spread: invalid value"):
        lf.alpha_pruning(1)


def test_an_encoder_of_torch_is_pruned_but_for_its_attention() -> None:
    """Its fast path calls no layer: it isn't taken while inputs are read."""
    layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, 2, 8, batch_first=True), 2)
    model = lf.with_prunable(lf.from_module(layers, init=lf.as_built), never_prune=["*.self_attn.*"])
    pruned = lf.prune_sequentially(model, [x[:, None] for x in X], 0.5)(lf.init(model))
    assert lf.density(pruned.masks) == 0.5
