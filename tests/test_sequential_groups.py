"""Whole groups pruned block by block: against a loop over heads, written down here; and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from method_plans import outcome, plan_for
from small import settings
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.trees.model import apply_evaluating
from lthfunc.trees.rng import key

WIDTH, HEADS, EACH, SHAPE = 12, 4, 3, (4, 5)
#: A head's share of the weights of a block: rows of queries, keys and values, and columns of the output.
HEAD = (3 * EACH * WIDTH + EACH * WIDTH) / (4 * WIDTH * WIDTH + 2 * WIDTH * 24)
#: Two heads of four are closest.
DENSITY = 1 - 2.2 * HEAD
X = [torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(n)) for n in (9, 6)]
Layer = Callable[[int, int], nn.Module]


class Block(nn.Module):
    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.qkv, self.out = layer(WIDTH, 3 * WIDTH), layer(WIDTH, WIDTH)
        self.up, self.down = layer(WIDTH, 24), layer(24, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, HEADS, EACH).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.transpose(-1, -2) / EACH**0.5).softmax(-1) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(n, length, WIDTH))
        found: Tensor = x + self.down(torch.tanh(self.up(x)))
        return found


class Net(nn.Module):
    def __init__(self, layer: Layer = nn.Linear) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.last = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3)
        self.blocks = nn.ModuleList(Block(layer) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        found: Tensor = self.last(x.mean(1))
        return found


def made(net: nn.Module | None = None) -> tuple[lf.Model, lf.TrainState]:
    model = lf.from_module(net or Net(), init=lf.as_built)
    return model, lf.init(model)


def of_kind(model: lf.Model, kind: str) -> list[lf.DependencyGroup]:
    return [group for group in lf.dependency_groups(model, SHAPE) if group.kind == kind]


def rows_of(head: int) -> list[int]:
    return [WIDTH * part + EACH * head + each for part in range(3) for each in range(EACH)]


def inputs_of(block: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """What the two layers of an attention read: all rows."""
    read = []
    hooks = [part.register_forward_pre_hook(lambda _, args: read.append(args[0])) for part in (block.qkv, block.out)]
    block(x)
    for hook in hooks:
        hook.remove()
    first, second = read
    return first.flatten(0, 1), second.flatten(0, 1)


def heads_by_hand(going: int) -> list[set[int]]:
    """The heads of each block that go: those of the least mean |w| · ‖x‖, for the inputs that pruned blocks give."""
    net: Any = copy.deepcopy(Net()).double()
    gone = []
    with torch.no_grad():
        x = net.first(torch.cat(X).double())
        for block in net.blocks:
            qkv, out = (
                part.weight.abs() * rows.square().mean(0).sqrt()
                for part, rows in zip((block.qkv, block.out), inputs_of(block, x), strict=True)
            )
            worth = []
            for head in range(HEADS):
                columns = slice(EACH * head, EACH * head + EACH)
                worth.append(torch.cat([qkv[rows_of(head)].flatten(), out[:, columns].flatten()]).mean())
            worst = set(torch.stack(worth).argsort()[:going].tolist())
            for head in worst:
                block.qkv.weight[rows_of(head)] = 0
                block.out.weight[:, EACH * head : EACH * head + EACH] = 0
            gone.append(worst)
            x = block(x)
    return gone


def check_heads(masks: dict[str, Tensor], gone: list[set[int]], *, turned: bool = False) -> None:
    """Nothing of these heads is there, and all else is."""
    for number, heads in enumerate(gone):
        for name, mask in masks.items():
            if name.startswith(f"blocks.{number}."):
                wanted = torch.ones_like(mask.T if turned else mask)
                for head in heads:
                    if "qkv" in name:
                        wanted[rows_of(head)] = False
                    if "out" in name:
                        wanted[:, EACH * head : EACH * head + EACH] = False
                assert torch.equal(mask.T if turned else mask, wanted), name
    assert all(mask.all() for name, mask in masks.items() if "blocks" not in name)


def test_heads_go_by_what_pruned_blocks_give() -> None:
    model, start = made()
    heads = of_kind(model, "heads")
    pruned = lf.prune_sequentially(model, X, DENSITY, pruning=lf.wanda_pruning(lf.whole_groups(heads)))(start)
    gone = heads_by_hand(2)
    assert gone[0] != gone[1]
    check_heads(pruned.masks, gone)
    tidied = lf.without_dead_groups(pruned, heads)
    for number, block in enumerate(gone):
        bias = tidied.params[f"blocks.{number}.qkv.bias"]
        dead = [row for head in block for row in rows_of(head)]
        assert not bias[dead].any()
        assert bias.count_nonzero() == 3 * WIDTH - len(dead)
    small = lf.compact(model, tidied, SHAPE)
    for number in range(2):
        shapes = {name: tuple(small.params[f"blocks.{number}.{name}.weight"].shape) for name in ("qkv", "out", "up")}
        assert shapes == {"qkv": (18, WIDTH), "out": (WIDTH, 6), "up": (24, WIDTH)}
    found, whole = (
        apply_evaluating(each, state.params, state.buffers, X[0])
        for each, state in ((small.model, small), (model, tidied))
    )
    torch.testing.assert_close(found, whole)


def test_heads_of_layers_that_are_stored_as_inputs_by_outputs() -> None:
    """A group's rows are then columns of what is stored."""
    pytest.importorskip("transformers")
    from transformers import pytorch_utils

    conv1d: Any = pytorch_utils.Conv1D
    turned = Net(lambda ins, outs: conv1d(outs, ins))
    plain = Net().state_dict()
    turned.load_state_dict({
        name: leaf.T if "blocks" in name and leaf.ndim == 2 else leaf for name, leaf in plain.items()
    })  # fmt: skip
    heads = [
        head._replace(parts=tuple(
            part._replace(axis=1 - part.axis) if part.name.endswith(".weight") else part for part in head.parts
        ))
        for head in of_kind(made()[0], "heads")
    ]  # fmt: skip
    model, start = made(turned)
    pruned = lf.prune_sequentially(model, X, DENSITY, pruning=lf.wanda_pruning(lf.whole_groups(heads)))(start)
    check_heads(pruned.masks, heads_by_hand(2), turned=True)


def test_groups_of_one_block_are_pruned_and_others_refused() -> None:
    model, start = made()
    hidden = [group for group in of_kind(model, "units") if group.parts[0].name.startswith("blocks")]
    pruned = lf.prune_sequentially(model, X, 0.9, pruning=lf.wanda_pruning(lf.whole_groups(hidden)))(start)
    for number in range(2):
        up, down = (pruned.masks[f"blocks.{number}.{name}.weight"] for name in ("up", "down"))
        assert lf.has_units(up)
        assert torch.equal(up.any(1), down.any(0))
        assert not up.all()
    residual = of_kind(model, "residual")
    for groups in (residual, lf.dependency_groups(model, SHAPE)):
        with pytest.raises(
            UserError, match=r"^structure: blocks are pruned .* group has weights of first\.weight and b"
        ):
            lf.prune_sequentially(model, X, 0.9, pruning=lf.wanda_pruning(lf.whole_groups(groups)))(start)
    within = [
        group._replace(parts=tuple(part for part in group.parts if part.name.startswith("blocks")))
        for group in residual
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"^structure: .* blocks\.0\.qkv\.weight and blocks\.1\.qkv\.weight"):
        lf.prune_sequentially(model, X, 0.9, pruning=lf.wanda_pruning(lf.whole_groups(within)))(start)


def test_a_block_that_holds_all_may_lose_dimensions_of_its_residual_stream() -> None:
    model, start = made(nn.Sequential(Net()))
    select = lf.whole_groups(of_kind(model, "residual"))
    pruned = lf.prune_sequentially(model, X, 0.8, pruning=lf.wanda_pruning(select), blocks=["0"])(start)
    there = pruned.masks["0.first.weight"].any(1)
    assert 0 < there.sum() < WIDTH
    for name, mask in pruned.masks.items():
        if "first" in name or "out" in name or "down" in name:
            assert torch.equal(mask, there[:, None].expand_as(mask)), name
        else:
            assert torch.equal(mask, there.expand_as(mask)), name


def a_set() -> Any:
    draw = torch.Generator().manual_seed(2)
    x, y = torch.randn(60, *SHAPE, generator=draw), torch.randint(0, 3, (60,), generator=draw)
    return lf.data.from_tensors("tokens", (x[:40], y[:40]), (x[40:], y[40:]), val=10)


def test_a_run_prunes_whole_heads_and_refuses_what_lies_across_blocks() -> None:
    model, data, seed = lf.from_module(Net()), a_set(), 4
    given: dict[str, Any] = {"steps": 6, "eval_every": 3, "batch_size": 5, "lr": 0.1}

    def planned(method: str, structure: str, density: float = 0.8, **more: Any) -> Any:
        return plan_for(method, model, data, structure=structure, density=density, **given, **more)

    ended = outcome(planned("wanda", "heads"), seed)
    trainer = lf.make_trainer(model, data, optimizer=lf.sgd(0.1), batch_size=5)
    trained = lf.take_steps(trainer, lf.init(model, seed), seed=seed, until=6)[0]
    inputs = [x for x, _ in lf.sample_batches(data, 5, 10, key(seed, "score", 1))]
    within = lf.count({name: mask for name, mask in trained.masks.items() if "blocks" in name}).total
    total = lf.count(trained.masks).total
    share = (0.8 * total - (total - within)) / within
    heads = lf.wanda_pruning(lf.whole_groups(of_kind(model, "heads")))
    by_parts = lf.prune_sequentially(model, inputs, share, pruning=heads)(trained)
    assert lf.same_bits(ended.masks, by_parts.masks)
    rows = [ended.masks[f"blocks.{number}.qkv.weight"].any(1).view(3, HEADS, EACH) for number in range(2)]
    for each in rows:
        heads_left = each.any(0).any(1)
        assert torch.equal(each, heads_left[None, :, None].expand_as(each))
        assert int(heads_left.sum()) == 2
    assert not ended.ticket.params["blocks.0.qkv.bias"].view(3, HEADS, EACH)[~rows[0]].any()  # training leaves them
    for structure in ("residual", "groups"):
        with pytest.raises(UserError, match=r"^structure: blocks are pruned one after the other, but a group has wei"):
            planned("wanda", structure)
    planned("wanda", "groups", 0.95, exempt=("first.*",))  # spares the residual stream
    with pytest.raises(UserError, match=r"^structure: whole groups leave at least 62\.5 % of the remaining weights"):
        planned("wanda", "heads", 0.5)
    with pytest.raises(UserError, match=r"^--structure: invalid value 'heads' \(expected unstructured with --method s"):
        settings(method="sparsegpt", structure="heads")
