"""Dependency groups: what goes together, its scores, and pruning by whole groups."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torchvision
from documentation import blocks
from networks_with_features import LENGTH, Concatenating, Language
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.models.transformers import ViT

Group = lf.DependencyGroup


def found(groups: tuple[Group, ...], kind: str, number: int = 0) -> dict[tuple[str, int], list[int]]:
    group = [each for each in groups if each.kind == kind][number]
    return {(name, axis): indices.tolist() for name, axis, indices in group.parts}


def test_a_head_is_its_rows_and_columns() -> None:
    """The second head of three of size 8: rows of queries, keys and values, a bias, columns of the output."""
    model = lf.from_module(ViT((1, 8, 8), 10, layers=1, heads=3, width=24), warn=False)
    groups = lf.dependency_groups(model, (1, 8, 8))
    assert Counter(group.kind for group in groups) == {"heads": 3, "residual": 24, "units": 96}
    rows = [place + k for k in (0, 24, 48) for place in range(8, 16)]
    assert found(groups, "heads", 1) == {
        ("blocks.0.attention.qkv.weight", 0): rows,
        ("blocks.0.attention.qkv.bias", 0): rows,
        ("blocks.0.attention.out.weight", 1): list(range(8, 16)),
    }
    assert found(groups, "residual", 5) == {
        ("first", 2): [5], ("places", 1): [5], ("patches.weight", 0): [5], ("patches.bias", 0): [5],
        ("blocks.0.norm1.weight", 0): [5], ("blocks.0.norm1.bias", 0): [5], ("blocks.0.attention.qkv.weight", 1): [5],
        ("blocks.0.attention.out.weight", 0): [5], ("blocks.0.attention.out.bias", 0): [5],
        ("blocks.0.norm2.weight", 0): [5], ("blocks.0.norm2.bias", 0): [5], ("blocks.0.up.weight", 1): [5],
        ("blocks.0.down.weight", 0): [5], ("blocks.0.down.bias", 0): [5],
        ("norm.weight", 0): [5], ("norm.bias", 0): [5], ("head.weight", 1): [5],
    }  # fmt: skip


@pytest.mark.parametrize("by_hand", [False, True])
def test_queries_that_share_a_key_are_one_head(by_hand: bool) -> None:
    model = lf.from_module(Language(by_hand=by_hand), tokens=True)
    groups = lf.dependency_groups(model, (LENGTH,))
    assert Counter(group.kind for group in groups) == {"heads": 2, "residual": 16, "units": 12}
    second = found(groups, "heads", 1)
    assert second["block.q.weight", 0] == list(range(8, 16))
    assert second["block.k.weight", 0] == second["block.v.weight", 0] == list(range(4, 8))
    assert second["block.out.weight", 1] == list(range(8, 16))
    assert found(groups, "units", 3) == {
        (f"block.{name}", axis): [3]
        for name, axis in (("gate.weight", 0), ("gate.bias", 0), ("up.weight", 0), ("up.bias", 0), ("down.weight", 1))
    }
    assert ("words.weight", 0) not in {part[:2] for group in groups for part in group.parts}


def test_an_embedding_that_is_the_output_layer_loses_dimensions_only() -> None:
    groups = lf.dependency_groups(lf.from_module(Language(tied=True), tokens=True), (LENGTH,))
    assert found(groups, "residual", 2)["words.weight", 1] == [2]
    assert ("words.weight", 0) not in {part[:2] for group in groups for part in group.parts}


def test_concatenated_channels_are_followed_to_their_places() -> None:
    """The second layer's channels are 8 to 11 of what the third one reads; normalisation joins them in pairs."""
    groups = lf.dependency_groups(lf.from_module(Concatenating()), (3, 6, 6))
    assert [len(group.parts[0].indices) for group in groups] == [2] * 8
    last = {(name, axis): indices.tolist() for name, axis, indices in groups[5].parts}
    assert last == {
        ("second.weight", 0): [2, 3], ("second.bias", 0): [2, 3], ("third.weight", 1): [10, 11],
        **{(f"{name}.{leaf}", 0): [10, 11] for name in ("depthwise", "norm") for leaf in ("weight", "bias")},
        ("head.weight", 1): [10, 11],
    }  # fmt: skip


class Odd(nn.Module):
    """Channels that are shuffled, and units that an operation mixes which nobody follows."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).view(len(x), 2, 4).transpose(1, 2).reshape(len(x), 8)
        out: Tensor = self.c(self.b(x).cumsum(1))
        return out


def test_what_cannot_be_removed_is_in_no_group() -> None:
    """Of a view as 2 by 4, one number alone leaves no tensor; sums over units depend on all."""
    assert lf.dependency_groups(lf.from_module(Odd()), (6,)) == ()


class Gated(nn.Module):
    """Units times one gate and one table for all positions; or times a tensor of their number made on the way."""

    table: Tensor

    def __init__(self, *, made: bool) -> None:
        super().__init__()
        self.a, self.gate, self.b, self.made = nn.Linear(6, 4), nn.Linear(6, 2), nn.Linear(4, 3), made
        self.register_buffer("table", torch.rand(5, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x) * self.gate(x).sigmoid().narrow(-1, 0, 1) + self.table
        out: Tensor = self.b(h * torch.arange(4) if self.made else h)
        return out


def test_what_multiplies_all_units_alike_is_none_of_them() -> None:
    groups = lf.dependency_groups(lf.from_module(Gated(made=False)), (5, 6))
    assert [{(name, axis): each.tolist() for name, axis, each in group.parts} for group in groups] == [
        *({("a.weight", 0): [unit], ("a.bias", 0): [unit], ("b.weight", 1): [unit]} for unit in range(4)),
        {("gate.weight", 0): [1], ("gate.bias", 0): [1]},  # nothing reads it
    ]
    groups = lf.dependency_groups(lf.from_module(Gated(made=True)), (5, 6))
    assert [group.parts[0].name for group in groups] == ["gate.weight"]


class Pairs(nn.Module):
    """Three gates, each for two units."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.gate, self.b = nn.Linear(6, 6), nn.Linear(6, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).view(len(x), 3, 2) * self.gate(x)[:, :, None]
        out: Tensor = self.b(h.reshape(len(x), 6))
        return out


def test_gates_of_several_units_stay() -> None:
    assert lf.dependency_groups(lf.from_module(Pairs()), (6,)) == ()


@pytest.mark.parametrize("name", ["resnet", "densenet", "mlp"])
def test_groups_are_those_of_torch_pruning(name: str) -> None:
    """As sets of modules and channels. (Of our ResNet-20's padded shortcuts it makes channels that are not there.)"""
    tp = pytest.importorskip("torch_pruning")
    networks: dict[str, Any] = {
        "resnet": lambda: torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1]),
        "densenet": lambda: torchvision.models.DenseNet(4, (2, 2), 8, num_classes=5),
        "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.ReLU(), nn.Linear(6, 5)),
    }
    net = networks[name]()
    shape = (3, 8, 8) if name == "mlp" else (3, 16, 16)
    net = net.eval().requires_grad_(True)
    graph = tp.DependencyGraph().build_dependency(net, torch.zeros(1, *shape))
    names = {module: key for key, module in net.named_modules()}
    ours = lf.dependency_groups(lf.from_module(net), shape)
    assert ours
    for group in ours[:: max(1, len(ours) // 12)]:
        weight = next(part for part in group.parts if part.axis == 0 and part.name.endswith("weight"))
        layer = net.get_submodule(weight.name.rpartition(".")[0])
        prune = tp.prune_linear_out_channels if isinstance(layer, nn.Linear) else tp.prune_conv_out_channels
        theirs = set()
        for item in graph.get_pruning_group(layer, prune, weight.indices.tolist()):
            module = item.dep.target.module
            if names.get(module) and list(module.parameters(recurse=False)):
                axis = int("in_channels" in item.dep.handler.__name__ and not isinstance(module, nn.BatchNorm2d))
                theirs |= {(names[module], axis, place) for place in item.idxs}
        assert theirs == {
            (part.name.rpartition(".")[0], part.axis, place)
            for part in group.parts if part.name.endswith("weight") for place in part.indices.tolist()
        }  # fmt: skip


def small() -> tuple[lf.Model, lf.TrainState, tuple[Group, ...]]:
    """Three hidden units with weights known by hand: of group 0, 1·2 and 3·1, and so on."""
    model = lf.from_module(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)))
    state = lf.init(model)
    params = {
        **state.params, "0.weight": torch.tensor([[1.0, -2.0], [3.0, 0.0], [0.5, 0.5]]),
        "2.weight": torch.tensor([[3.0, -1.0, 2.0]]), "0.bias": torch.ones(3),
    }  # fmt: skip
    return model, state._replace(params=params), lf.dependency_groups(model, (2,))


@pytest.mark.parametrize(
    ("reduce", "wanted"), [("mean", [2, 4 / 3, 1]), ("sum", [6, 4, 3]), ("norm", [14**0.5, 10**0.5, 4.5**0.5])]
)
def test_scores_of_groups(reduce: str, wanted: list[float]) -> None:
    """By hand; normalised they are divided by their mean, which is one width's here."""
    _, state, groups = small()
    scores = lf.magnitude(state.params, state.masks)
    got = lf.group_scores(scores, state.masks, groups, reduce=reduce, normalize=False)
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64))
    normalized = lf.group_scores(scores, state.masks, groups, reduce=reduce)
    torch.testing.assert_close(normalized, got / got.mean())


def test_scores_count_what_remains() -> None:
    _, state, groups = small()
    masks = {**state.masks, "0.weight": torch.tensor([[True, False], [True, True], [True, True]])}
    scores = lf.magnitude(state.params, masks)
    got = lf.group_scores(scores, masks, groups, normalize=False)
    assert got.tolist() == [2.0, pytest.approx(4 / 3), 1.0]  # (1 + 3) / 2 of the first
    with pytest.raises(UserError, match=r"reduce: invalid value 'max' \(expected mean or sum or norm\)"):
        lf.group_scores(scores, masks, groups, reduce="max")


def test_the_worst_groups_go_with_their_biases() -> None:
    """A density of 2/3 is two of three units; the state before is not changed."""
    _, state, groups = small()
    before = lf.tree_map(torch.clone, state.params)
    pruned = lf.prune_groups(groups, density=2 / 3)(state)
    assert {name: mask.tolist() for name, mask in pruned.masks.items()} == {
        "0.weight": [[True, True], [True, True], [False, False]], "2.weight": [[True, True, False]],
    }  # fmt: skip
    assert pruned.params["0.bias"].tolist() == [1, 1, 0]
    assert pruned.params["2.bias"].equal(before["2.bias"])
    assert lf.same_bits(state.params, before)
    assert [lf.count(lf.prune_groups(groups, density=each)(state).masks).kept for each in (0.6, 0.45)] == [6, 3]
    least = lf.prune_groups(groups, density=0.3)(state)
    assert lf.count(least.masks).kept == 3  # one unit of a width always stays
    words = "whole groups leave at least 33.3 % of the remaining weights, but 10 % are to be kept"
    with pytest.raises(UserError, match=f"^prune_groups: {words}$"):
        lf.prune_groups(groups, density=0.1)(state)
    with pytest.raises(UserError, match=r"^structure: whole groups leave at least 33.3 % "):
        lf.prune(density=0.1, select=lf.whole_groups(groups))(state)
    assert least.masks["0.weight"][0].all()
    again = lf.prune_groups(groups, fraction=0.5)(pruned)
    assert lf.same_bits(again, lf.prune_groups(groups, density=1 / 3)(state))


def test_costs_are_what_is_kept() -> None:
    """With the first layer for nothing, two of three units are two of three weights of the second."""
    _, state, groups = small()
    costs = {"0.weight": 0.0, "2.weight": 5.0}
    assert lf.count(lf.prune_groups(groups, density=0.7, costs=costs)(state).masks).kept == 6
    assert lf.count(lf.prune_groups(groups, density=0.3, costs=costs)(state).masks).kept == 3


def test_groups_of_another_network_are_refused() -> None:
    groups = small()[2]
    other = lf.init(lf.from_module(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))))
    with pytest.raises(UserError, match=r"belong to another network, in which '0\.weight' is larger"):
        lf.prune_groups(groups, density=0.5)(other)
    with pytest.raises(UserError, match="belong to another network, which has none of these weights"):
        lf.prune_groups(groups, density=0.5)(lf.init(lf.from_module(nn.ModuleDict({"a": nn.Linear(2, 2)})["a"])))
    with pytest.raises(UserError, match="give either fraction or density"):
        lf.prune_groups(groups)


def test_the_page_runs_as_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """On a smaller network, and shorter; half of the FLOPs are half of those of `lf.cost`."""
    (code,) = blocks("docs/how-to/groups.md", "python")
    for long, short in (("steps=300", "steps=3"), ("steps=500", "steps=6"), ("layers=2", "layers=1")):
        assert long in code
        code = code.replace(long, short)
    names: dict[str, Any] = {}
    exec(compile(code, "groups.md", "exec"), names)
    kinds, last = capsys.readouterr().out.splitlines()
    assert kinds == "{'heads': 4, 'residual': 32, 'units': 128}"
    half, model, data = (names[name] for name in ("half", "model", "data"))
    cost = lf.cost(model, half.params, half.masks, data.shape)
    layers = cost.layers.values()
    left = sum(layer.effective for layer in layers) / sum(layer.flops for layer in layers)
    assert left == pytest.approx(0.5, abs=0.05)  # nearly equal scores are in other orders on other processors
    assert int(last.split()[1]) == sum(leaf.numel() for leaf in names["small"].params.values())
    assert lf.count(names["small"].masks).kept == lf.count(half.masks).kept


class Halves(nn.Module):
    """One layer whose halves two others read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.left, self.right = nn.Linear(3, 6), nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.first(x).chunk(2, -1)
        out: Tensor = self.left(left) + self.right(right)
        return out


def test_each_layer_goes_on_to_read_something() -> None:
    """Of six units that are worth less in the second half, one remains there."""
    model = lf.from_module(Halves())
    groups = lf.dependency_groups(model, (3,))
    assert {group.width for group in groups} == {0}
    state = lf.init(model)
    rows = torch.tensor([6.0, 5, 4, 1, 2, 3])[:, None].expand(6, 3)
    params = {**state.params, "first.weight": rows, "right.weight": state.params["right.weight"] * 1e-3}
    pruned = lf.prune_groups(groups, density=1 / 3)(state._replace(params=params))
    assert pruned.masks["first.weight"].any(1).tolist() == [True, False, False, False, False, True]
    assert pruned.masks["right.weight"].any(0).tolist() == [False, False, True]
