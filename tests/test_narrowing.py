"""Networks without heads, dimensions and hidden units compute what masked ones do; and they are as small by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from networks_with_features import LENGTH, WORDS, Attend, Concatenating, Language, compacted, noisy
from torch import Tensor, nn
from torch.func import functional_call
from torchvision.models.detection.fcos import FCOSHead

import lthfunc as lf
from lthfunc.models.transformers import CharTransformer, ViT
from lthfunc.sparsify.groups import without_groups


class Detector(nn.Module):
    """torchvision's head of FCOS on one map: convolutions, normalisation of groups, views and permutations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 64, 3, stride=2), FCOSHead(64, 1, 3, num_convs=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self.head([torch.relu(self.stem(x))])
        return found


NETWORKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "vit": (lambda: ViT((1, 8, 8), 10, layers=1, heads=3, width=24), (1, 8, 8)),
    "characters": (lambda: CharTransformer((LENGTH,), WORDS, layers=1, heads=3, width=12), (LENGTH,)),
    "grouped queries": (Language, (LENGTH,)),
    "attention by hand, tied": (lambda: Language(by_hand=True, tied=True), (LENGTH,)),
    "torchvision's vit": (
        lambda: torchvision.models.VisionTransformer(8, 4, 1, 4, 16, 32, num_classes=10), (3, 8, 8),
    ),
    "convnext": (
        lambda: torchvision.models.ConvNeXt([torchvision.models.convnext.CNBlockConfig(16, None, 2)], num_classes=5),
        (3, 8, 8),
    ),
    "concatenating": (Concatenating, (3, 6, 6)),
    "detector": (Detector, (3, 7, 7)),
}  # fmt: skip


def numbers(tree: dict[str, Tensor]) -> int:
    return sum(leaf.numel() for leaf in tree.values())


def inputs_of(model: lf.Model, shape: tuple[int, ...]) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    if model.tokens:
        return torch.randint(WORDS, (3, *shape), generator=draw)
    return torch.randn(3, *shape, generator=draw, dtype=torch.float64)


def called(model: lf.Model, state: Any, x: Tensor) -> Any:
    return functional_call(model.evaluating, ({**state.params, **state.buffers},), (x,))


def agree(small: lf.Compacted, model: lf.Model, state: Any, x: Tensor) -> None:
    got, wanted = small.model.evaluating(x), called(model, state, x)
    torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(called(small.model, small, x), wanted, rtol=1e-11, atol=1e-11)


def revived(state: lf.TrainState) -> lf.TrainState:
    """With numbers in what training moves although nothing reads it, such as biases in front of a normalisation."""
    draw = torch.Generator().manual_seed(2)
    params = {
        name: leaf if name in state.masks else leaf + torch.rand(leaf.shape, generator=draw, dtype=leaf.dtype)
        for name, leaf in state.params.items()
    }
    return state._replace(params=params)


LONG = ("characters", "convnext", "torchvision's vit")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name in LONG else name for name in NETWORKS]
)
def test_groups_that_went_are_gone(name: str) -> None:
    """All kinds at once, in float64; no masked weight is left, nor any number of a group; biases may have revived."""
    make, shape = NETWORKS[name]
    model = lf.from_module(make(), tokens=len(shape) == 1, warn=False)
    groups = lf.dependency_groups(model, shape)
    places: dict[int, int] = {}
    gone = []
    for group in groups:
        places[group.width] = places.get(group.width, 0) + 1
        gone += [group] if places[group.width] % 3 == 2 else []
    assert {group.kind for group in gone} == {group.kind for group in groups}
    state = noisy(lf.init(model))
    state = lf.without_dead_groups(state._replace(masks=without_groups(state.masks, gone)), groups)
    x = inputs_of(model, shape)
    if name != "convnext":  # in which what a normalisation writes to the residual stream is alive again
        state = revived(state)
    small = compacted(model, state, shape)
    agree(small, model, state, x)
    assert all(mask.all() for mask in small.masks.values())
    assert lf.count(small.masks).kept == lf.count(state.masks).kept
    wanted = dict[str, set[tuple[int, int]]]()
    for group in gone:
        for part in group.parts:
            wanted.setdefault(part.name, set()).update((part.axis, place) for place in part.indices.tolist())
    for leaf, whole in {**state.params, **state.buffers}.items():
        if leaf in small.params and leaf in wanted:
            sizes = [size - sum(axis == each for axis, _ in wanted[leaf]) for each, size in enumerate(whole.shape)]
            assert list(small.params[leaf].shape) == sizes


def test_two_heads_are_the_network_with_two_heads() -> None:
    """Against the smaller module made by hand, with the slices copied into it."""
    model = lf.from_module(Attend(12, 3, 4))
    state = noisy(lf.init(model))
    groups = lf.dependency_groups(model, (LENGTH, 12))
    assert [group.kind for group in groups] == ["heads"] * 3
    masks = dict(state.masks)
    rows = torch.tensor([4, 5, 6, 7])
    masks["qkv.weight"] = masks["qkv.weight"].index_fill(0, torch.cat([rows, rows + 12, rows + 24]), False)
    masks["out.weight"] = masks["out.weight"].index_fill(1, rows, False)
    state = lf.without_dead_groups(state._replace(masks=masks), groups)
    assert not state.params["qkv.bias"][rows + 12].any()
    smaller = Attend(12, 2, 4).double()
    kept = torch.tensor([0, 1, 2, 3, 8, 9, 10, 11])
    with torch.no_grad():
        whole = torch.cat([kept, kept + 12, kept + 24])
        smaller.qkv.weight.copy_(state.params["qkv.weight"][whole])
        smaller.qkv.bias.copy_(state.params["qkv.bias"][whole])
        smaller.out.weight.copy_(state.params["out.weight"][:, kept])
        smaller.out.bias.copy_(state.params["out.bias"])
    small = lf.compact(model, state, (LENGTH, 12))
    by_hand = dict(smaller.named_parameters())
    assert {name: tuple(leaf.shape) for name, leaf in small.params.items()} == {
        name: tuple(leaf.shape) for name, leaf in by_hand.items()
    }
    x = torch.randn(2, LENGTH, 12, dtype=torch.float64)
    torch.testing.assert_close(small.model.evaluating(x), smaller(x), rtol=1e-11, atol=1e-11)
    assert torch.equal(lf.put_back(state.params, small.params, small.cuts)["qkv.weight"], state.params["qkv.weight"])


class Averaging(nn.Module):
    """A mean over features, which their number is part of, and a sum; and a normalisation that examples share."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shift, self.last = nn.Linear(4, 6), nn.Parameter(torch.zeros(3, 6)), nn.Linear(6, 2)
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x) + self.shift
        mixed = x.mean(-1, keepdim=True) + x.sum(-1, keepdim=True) * x.square().mean(-1, keepdim=True)
        flat = self.norm(x.reshape(-1, 6)).view(x.shape)
        out: Tensor = self.last(flat + x * mixed)
        return out


def test_means_and_normalisations_count_what_is_gone() -> None:
    """Two of six features that are constants, others at each position: means and variances are still of six."""
    model = lf.from_module(Averaging(), warn=False)
    state = noisy(lf.init(model))
    masks = dict(state.masks)
    masks["first.weight"] = masks["first.weight"].index_fill(0, torch.tensor([1, 4]), False)
    masks["last.weight"] = masks["last.weight"].index_fill(1, torch.tensor([1, 4]), False)
    params = lf.apply_masks(state.params, masks)
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    same = {**params, "shift": params["shift"][:1].expand(3, 6)}  # positions and examples are one dimension of a view
    for leaves, size in ((same, 4), (params, 6)):
        state = state._replace(params=leaves, masks=masks)
        small = lf.compact(model, state, (3, 4))
        agree(small, model, state, x)
        assert small.params["norm.weight"].shape == (size,)


class Wider(nn.Module):
    """A sum over features in a wider type than theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        out: Tensor = self.last(x) * x.float().sum(-1, keepdim=True, dtype=torch.float64)
        return out


def test_a_sum_of_what_is_left_has_the_type_that_it_asks_for() -> None:
    model = lf.from_module(Wider(), warn=False)
    state = noisy(lf.init(model))
    masks = dict(state.masks)
    masks["first.weight"] = masks["first.weight"].index_fill(0, torch.tensor([1, 4]), False)
    masks["last.weight"] = masks["last.weight"].index_fill(1, torch.tensor([1, 4]), False)
    state = state._replace(params=lf.apply_masks(state.params, masks), masks=masks)
    small = lf.compact(model, state, (3, 4))
    agree(small, model, state, torch.randn(5, 3, 4, dtype=torch.float64))
    assert small.params["first.weight"].shape == (4, 4)


@pytest.mark.parametrize("between", ["norm", "mean"])
def test_a_dimension_that_is_still_read_stays(between: str) -> None:
    """A normalisation and a mean depend on what varies, though no weight behind them does."""

    class Depending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last, self.norm = nn.Linear(4, 6), nn.Linear(6, 2), nn.LayerNorm(6)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            x = self.norm(x) if between == "norm" else x - x.mean(-1, keepdim=True)
            out: Tensor = self.last(x)
            return out

    model = lf.from_module(Depending(), warn=False)
    state = noisy(lf.init(model))
    masks = {**state.masks, "last.weight": state.masks["last.weight"].index_fill(1, torch.tensor([2]), False)}
    state = state._replace(params=lf.apply_masks(state.params, masks), masks=masks)
    small = lf.compact(model, state, (3, 4))
    agree(small, model, state, torch.randn(5, 3, 4, dtype=torch.float64))
    assert small.params["first.weight"].shape == (6, 4)


def test_features_without_positions_are_normalised_by_batches() -> None:
    """Here behind groups, whose normalisation brings the rules of features in."""
    model = lf.from_module(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.GroupNorm(2, 6), nn.Linear(6, 2)))
    state = noisy(lf.init(model))
    masks = {**state.masks, "3.weight": state.masks["3.weight"].index_fill(1, torch.tensor([0, 1, 2]), False)}
    masks["0.weight"] = masks["0.weight"].index_fill(0, torch.tensor([4]), False)
    state = state._replace(params=lf.apply_masks(state.params, masks), masks=masks)
    small = lf.compact(model, state, (4,))
    agree(small, model, state, torch.randn(5, 4, dtype=torch.float64))


def test_a_head_that_gives_zeros_goes_although_it_is_read() -> None:
    model = lf.from_module(Attend(12, 3, 4))
    state = noisy(lf.init(model))
    rows = torch.cat([torch.arange(4, 8) + each for each in (0, 12, 24)])
    masks = {**state.masks, "qkv.weight": state.masks["qkv.weight"].index_fill(0, rows, False)}
    x = torch.randn(2, LENGTH, 12, dtype=torch.float64)
    for bias, heads in ((state.params["qkv.bias"].index_fill(0, rows, 0), 2), (state.params["qkv.bias"], 3)):
        params = lf.apply_masks({**state.params, "qkv.bias": bias}, masks)
        small = lf.compact(model, state._replace(params=params, masks=masks), (LENGTH, 12))
        agree(small, model, state._replace(params=params), x)
        assert small.params["out.weight"].shape == (12, 4 * heads)


class Patches(nn.Module):
    """Two convolutions, whose positions become those of a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.patches = nn.Conv2d(1, 6, 2), nn.Conv2d(6, 4, 2)
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(torch.relu(self.stem(x))).flatten(2).transpose(1, 2)
        out: Tensor = self.head(self.norm(x)).mean(1)
        return out


def test_what_goes_as_a_whole_and_what_is_folded_are_cut_from_one_leaf() -> None:
    """Channel 1 is read by nothing; channel 3 is a constant that is read, and folded into a bias."""
    model = lf.from_module(Patches())
    state = noisy(lf.init(model))
    masks = dict(state.masks)
    masks["patches.weight"] = masks["patches.weight"].index_fill(1, torch.tensor([1]), False)
    masks["stem.weight"] = masks["stem.weight"].index_fill(0, torch.tensor([3]), False)
    state = state._replace(params=lf.apply_masks(state.params, masks), masks=masks)
    small = lf.compact(model, state, (1, 4, 4))
    agree(small, model, state, torch.randn(2, 1, 4, 4, dtype=torch.float64))
    (kept, *_), (_, read, *_) = small.cuts["stem.weight"], small.cuts["patches.weight"]
    assert kept is not None
    assert read is not None
    assert kept.tolist() == read.tolist() == [0, 2, 4, 5]
    whole = lf.put_back(state.params, {"stem.weight": small.params["stem.weight"]}, small.cuts)
    assert torch.equal(whole["stem.weight"], state.params["stem.weight"])


def test_a_whole_network_is_left_as_it_is() -> None:
    model = lf.from_module(Language(), tokens=True)
    state = noisy(lf.init(model))
    small = lf.compact(model, state, (LENGTH,))
    agree(small, model, state, inputs_of(model, (LENGTH,)))
    assert numbers(small.params) == numbers(state.params)
