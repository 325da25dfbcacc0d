"""Trees: masks and counts, files, models made of modules, counter-based randomness."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import pytest
import torch
from conftest import NormedNet
from hypothesis import given, settings, strategies as st
from torch import nn

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.trees import ops, rng


def test_apply_masks_zeroes_pruned_weights_with_positive_zero_and_changes_no_argument() -> None:
    params = {"w": torch.tensor([-1.0, 2.0, -3.0]), "b": torch.tensor([5.0])}
    before = ops.clone(params)
    result = lf.apply_masks(params, {"w": torch.tensor([False, True, False])})
    assert result["w"].tolist() == [0.0, 2.0, 0.0]
    assert math.copysign(1, result["w"][0].item()) == 1.0
    assert lf.same_bits(params, before)


def test_counts_are_exact_per_layer_and_in_all() -> None:
    masks = {"a": torch.tensor([True, False, True]), "b": torch.zeros(2, 2, dtype=torch.bool)}
    assert lf.layer_counts(masks) == {"a": (2, 3), "b": (0, 4)}
    assert lf.count(masks) == (2, 7)
    assert lf.density(masks) == pytest.approx(2 / 7, abs=0)


def test_same_bits_tells_signed_zeros_apart_and_takes_nan_for_equal() -> None:
    nan, zero = torch.tensor([math.nan]), torch.tensor([0.0])
    assert lf.same_bits({"a": nan}, {"a": nan.clone()})
    assert not lf.same_bits({"a": zero}, {"a": -zero})
    assert not lf.same_bits({"a": zero}, {"b": zero})
    assert not lf.same_bits({"a": zero}, {"a": zero.double()})


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(codec="ascii", categories=["L", "N"], include_characters="._"), min_size=1),
        st.lists(st.floats(width=32), max_size=5),
        max_size=4,
    )
)
def test_trees_come_back_from_files_with_the_same_bits_order_and_metadata(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[str, list[float]]
) -> None:
    path = tmp_path_factory.mktemp("trees") / "tree.safetensors"
    whole = {
        "params": {name: torch.tensor(values) for name, values in tree.items()},
        "masks": {name: torch.tensor(values) > 0 for name, values in tree.items()},
    }
    lf.save_tree(path, whole, {"config": {"rate": 0.2}, "seed": 3})
    back, metadata = lf.load_tree(path)
    assert metadata == {"config": {"rate": 0.2}, "seed": 3}
    for part in whole:
        assert list(back.get(part, {})) == list(whole[part])
        assert lf.same_bits(back.get(part, {}), whole[part])


def test_ticket_files_are_safetensors_and_keep_the_output_layer_last(tmp_path: Path) -> None:
    state = lf.init(lf.models.lenet300((1, 8, 8), 10), seed=1)
    path = tmp_path / "ticket.safetensors"
    lf.save_ticket(path, lf.ticket(state), {"seed": 1})
    back, metadata = lf.load_ticket(path)
    assert metadata["seed"] == 1
    assert lf.same_bits(back, lf.ticket(state))
    assert next(reversed(back.masks)) == "fc3.weight"
    # The file's own format, read independently: eight bytes of length, then JSON.
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
    assert header["masks/fc1.weight"]["dtype"] == "BOOL"
    assert json.loads(header["__metadata__"]["lthfunc"])["format"] == "lthfunc.ticket/1"


@pytest.mark.parametrize("content", [b"", b"\x80\x04pickle", b"\xff" * 64])
def test_files_that_are_no_trees_are_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.safetensors: cannot be read"):
        lf.load_tree(path)


@pytest.mark.parametrize("packed", [False, True])
def test_metadata_that_the_file_has_itself_is_refused_before_anything_is_written(tmp_path: Path, packed: bool) -> None:
    ticket, file = lf.ticket(lf.init(lf.from_module(nn.Linear(4, 2)))), tmp_path / "ticket.safetensors"
    for name in ("order", "packed/1"):
        about, words = {"seed": 3, name: "mine"}, rf"^metadata: invalid value '{name}' \(expected another name: "
        with pytest.raises(UserError, match=words):
            lf.save_tree(file, ticket.params, about, packed=packed)
        with pytest.raises(UserError, match=words):
            lf.save_ticket(file, ticket, about, packed=packed)
    with pytest.raises(UserError, match=r"^metadata: 'format': invalid value 'mine' \(expected none, or 'lthfunc"):
        lf.save_ticket(file, ticket, {"format": "mine"}, packed=packed)
    assert not [*tmp_path.iterdir()]
    lf.save_ticket(file, ticket, {"seed": 3}, packed=packed)
    lf.save_ticket(file, *lf.load_ticket(file), packed=packed)
    assert lf.load_ticket(file)[1]["seed"] == 3


def test_a_params_file_is_not_taken_for_a_ticket(tmp_path: Path) -> None:
    lf.save_tree(tmp_path / "p.safetensors", {"params": {"w": torch.ones(1)}})
    with pytest.raises(UserError, match="is not a ticket"):
        lf.load_ticket(tmp_path / "p.safetensors")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "tree.safetensors"
    lf.save_tree(path, {"w": torch.ones(2)})
    with pytest.raises(UserError):
        lf.save_tree(path, {"w": torch.zeros(2)}, {"bad": object()})
    assert lf.load_tree(path)[0]["w"].tolist() == [1.0, 1.0]
    assert [file.name for file in tmp_path.iterdir()] == ["tree.safetensors"]


def test_a_model_is_a_copy_of_the_module_and_never_changes_it() -> None:
    module = NormedNet()
    before = ops.clone(dict(module.state_dict()))
    model = lf.from_module(module)
    state = lf.init(model, seed=5)
    assert model.prunable == ("conv.weight", "fc.weight")
    assert lf.same_bits(dict(module.state_dict()), before)
    assert all(mask.all() and mask.dtype == torch.bool for mask in state.masks.values())


def test_glorot_has_the_papers_variance_and_zero_biases() -> None:
    state = lf.init(lf.models.lenet300(), seed=0)
    weight = state.params["fc1.weight"]
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (784 + 300)), rel=0.01)
    assert weight.mean().abs().item() < 1e-3
    assert not state.params["fc1.bias"].any()


def test_initialisation_is_a_function_of_the_seed() -> None:
    model = lf.models.lenet300((1, 8, 8), 10)
    assert lf.same_bits(lf.init(model, 3), lf.init(model, 3))
    assert not lf.same_bits(lf.init(model, 3).params, lf.init(model, 4).params)


def test_as_built_keeps_the_modules_values() -> None:
    module = NormedNet()
    state = lf.init(lf.from_module(module, init=lf.as_built), seed=9)
    assert lf.same_bits(state.params, {name: value.detach() for name, value in module.named_parameters()})


def test_further_parameters_can_be_made_prunable_by_pattern() -> None:
    attention = nn.MultiheadAttention(8, 2)
    assert "in_proj_weight" in lf.from_module(attention, prunable=("*in_proj_weight",)).prunable
    with pytest.raises(UserError, match="no parameter matches 'nothing"):
        lf.from_module(attention, prunable=("nothing*",))
    with pytest.raises(UserError, match="no linear, convolution, embedding, recurrent or attention"):
        lf.from_module(nn.BatchNorm1d(3))


def test_random_draws_depend_on_seed_purpose_and_counters_alone() -> None:
    torch.manual_seed(1)
    first = rng.permutation(50, 0, "order", 3)
    torch.manual_seed(2)
    assert torch.equal(first, rng.permutation(50, 0, "order", 3))
    others = [rng.permutation(50, *key) for key in ((1, "order", 3), (0, "order", 4), (0, "test", 3), (0, "order"))]
    assert all(not torch.equal(first, other) for other in others)
    assert sorted(first.tolist()) == list(range(50))


@pytest.mark.parametrize("n", [1, 2, 60, 3_000])
def test_the_first_of_a_permutation_need_not_all_of_it(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(3):
        expected = rng.permutation(n, seed, "order", 3)
        for count in {0, 1, n // 2, n}:
            assert torch.equal(rng.first_of_permutation(count, n, seed, "order", 3), expected[:count])
    assert rng._SHUFFLED_FROM > 2e8, "PyTorch shuffles more numbers in another way"
    monkeypatch.setattr(rng, "_SHUFFLED_FROM", n)
    assert torch.equal(rng.first_of_permutation(n, n, 2, "order", 3), expected)


def test_compose_applies_from_left_to_right_and_iterate_repeats() -> None:
    state = lf.init(lf.models.lenet300((1, 8, 8), 10))
    add = lambda s: s._replace(step=s.step + 1)  # noqa: E731
    double = lambda s: s._replace(step=s.step * 2)  # noqa: E731
    assert int(lf.compose(add, double)(state).step) == 2
    assert int(lf.iterate(lf.compose(add, double), 3)(state).step) == 14
    assert lf.iterate(add, 0)(state) is state


def test_states_and_splits_are_printed_in_one_line_and_stay_trees() -> None:
    state = lf.init(lf.models.lenet300(), seed=0)
    half = lf.prune(fraction=0.5)(state)
    assert repr(half) == f"TrainState(266,610 params, {lf.count(half.masks).kept:,} of 266,200 weights remain, step 0)"
    assert repr(lf.ticket(half)).startswith(f"Ticket(266,610 params, {lf.count(half.masks).kept:,} of 266,200 weights")
    digits = lf.data.load("digits")
    assert repr(digits.val) == "Split(x: float32 of shape (180, 1, 8, 8), y: int64 of shape (180,))"
    assert len(repr(digits)) < 400
    axes = lf.tree_map(lambda leaf: 0, half)  # such as vmap's in_dims
    assert type(axes) is lf.TrainState
    assert "fc1.weight': 0" in repr(axes)

    def traced(each: lf.TrainState) -> torch.Tensor:
        assert repr(each).startswith("TrainState(params=")
        return each.step

    torch.vmap(traced)(lf.tree_map(lambda leaf: leaf[None], half))
