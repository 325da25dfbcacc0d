"""Trees in files on their survivors: the same bits back, in as few bytes as can be reckoned, and nothing damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.trees.files import load_tree, tree_bytes, tree_of
from lthfunc.trees.ops import scattered
from lthfunc.trees.packed_trees import OnPlaces, mask_on

SHAPE = (30, 40, 3)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.int64, torch.uint8)


def mask_of(density: float, seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density


def drawn(mask: Tensor, dtype: torch.dtype, seed: int) -> Tensor:
    numbers = torch.randn(mask.shape, generator=torch.Generator().manual_seed(seed)) * 9
    return torch.where(mask, numbers.to(dtype), torch.zeros((), dtype=dtype))


def back(tree: Any) -> tuple[Any, bytes]:
    payload = tree_bytes(tree, {"seed": 3}, packed=True)
    found, about = tree_of(payload, "file")
    assert about == {"seed": 3}
    return found, payload


@pytest.mark.parametrize("density", [0.0, 0.0002, 0.002, 0.02, 0.4, 0.6, 1.0])
def test_trees_come_back_with_their_bits_and_order(density: float) -> None:
    mask, other = mask_of(density, 0), mask_of(density, 1)
    tree: dict[str, Any] = {
        "params": {f"w.{number}": drawn(mask, dtype, number) for number, dtype in enumerate(DTYPES)},
        "chosen": {"w.0": drawn(other, torch.float32, 5), "w.1": drawn(other, torch.float64, 6)},
        "masks": {f"w.{number}": mask for number in range(len(DTYPES))},
        "odd": {"minus zero": -torch.zeros(100), "NaN": torch.full((90,), float("nan")), "none": torch.zeros(0, 3)},
        "scalar": torch.tensor(4), "few": torch.zeros(5), "turned": drawn(mask, torch.float32, 8).transpose(0, 2),
    }  # fmt: skip
    tree["shared"] = tree["params"]["w.0"]
    found, _ = back(tree)
    assert lf.same_bits(found, tree)
    assert [list(found), list(found["params"])] == [list(tree), list(tree["params"])]


@pytest.mark.parametrize(("density", "place_bytes"), [(0.2, 0.125), (0.05, 0.125), (0.01, 0.04), (0.0001, 0.125)])
def test_bytes_are_those_of_survivors_and_one_mask(density: float, place_bytes: float) -> None:
    """Three trees under one mask, and one under another: the network that was best before masks changed."""
    mask, other = (mask_of(density, seed, (400, 500)) for seed in (0, 1))
    leaf, moment, variance = (drawn(mask, torch.float32, seed) for seed in range(3))
    tree = {
        "params": {"w": leaf}, "masks": {"w": mask}, "opt": {"0": {"w": moment}, "1": {"w": variance}},
        "chosen": {"w": drawn(other, torch.float32, 3)},
    }  # fmt: skip
    found, payload = back(tree)
    assert lf.same_bits(found, tree)
    numbers = 4 * (3 * int(mask.sum()) + int(other.sum()))
    places = 2 * mask.numel() * place_bytes
    assert len(payload) < 1.02 * numbers + 1.05 * places + 1000
    assert len(payload) < 0.6 * len(tree_bytes(tree))


def test_another_program_reads_survivors_and_bits(tmp_path: Path) -> None:
    """As the page on a run's files says it: by numpy alone."""
    mask = mask_of(0.1, 0)
    leaf = drawn(mask, torch.float32, 1)
    payload = tree_bytes({"params": {"w": leaf}, "masks": {"w": mask}}, packed=True)
    size = int.from_bytes(payload[:8], "little")
    header, data = json.loads(payload[8 : 8 + size]), payload[8 + size :]
    about = json.loads(header["__metadata__"]["lthfunc"])["packed/1"]
    parts = {name: data[slice(*each["data_offsets"])] for name, each in header.items() if name != "__metadata__"}
    (shape, where) = about["shapes"]["masks/w"], about["places"]["params/w"]
    bits = np.unpackbits(np.frombuffer(parts[where], np.uint8), count=int(np.prod(shape)))
    dense = np.zeros(bits.shape, np.float32)
    dense[bits == 1] = np.frombuffer(parts["params/w"], np.float32)
    assert np.array_equal(dense.reshape(shape), leaf.numpy())


@given(
    density=st.sampled_from([0.0, 0.0004, 0.01, 0.1, 0.45, 0.5, 0.7, 1.0]), other=st.sampled_from([0.0, 0.1, 0.6]),
    shape=st.sampled_from([(), (7,), (64,), (5, 13), (40, 50, 3)]), seed=st.integers(0, 99),
    odd=st.lists(st.sampled_from([0.0, -0.0, float("nan"), float("inf"), 1e-45, 3.0]), max_size=6),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_leaves_on_survivors_are_written_to_the_bytes_of_dense_ones(
    density: float, other: float, shape: tuple[int, ...], seed: int, odd: list[float]
) -> None:
    """Also where survivors are zero, and for the network that was best before masks changed."""
    masks = [mask_of(part, at, shape) for at, part in enumerate((density, density, other), seed)]
    masks[2] |= masks[0]
    places = [mask.flatten().nonzero().flatten() for mask in masks]
    values = [torch.randn(len(each), generator=torch.Generator().manual_seed(seed)) for each in places]
    for leaf in values:
        leaf[: len(odd)] = torch.tensor(odd)[: len(leaf)]
    packed = [OnPlaces(leaf, at, mask.shape) for leaf, at, mask in zip(values, places, masks, strict=True)]
    dense = [scattered(*each) for each in packed]
    bias = torch.randn(90, generator=torch.Generator().manual_seed(seed))
    ours, theirs = (
        {"params": {"w": one, "b": bias}, "masks": {"w": mask}, "opt": {"0": {"w": one}, "1": {"": bias}},
         "chosen": {"w": two}, "wider": {"w": three}, "alone": two}
        for (one, two, three), mask in ((packed, mask_on(places[0], masks[0].shape)), (dense, masks[0]))
    )  # fmt: skip
    for whole in (True, False):
        assert tree_bytes(ours, packed=whole) == tree_bytes(theirs, packed=whole)
    assert lf.same_bits(back(ours)[0], theirs)


def changed(payload: bytes, change: Any) -> bytes:
    """The file with another header."""
    size = int.from_bytes(payload[:8], "little")
    header = json.loads(payload[8 : 8 + size])
    about = json.loads(header["__metadata__"]["lthfunc"])
    change(header, about["packed/1"], about)
    header["__metadata__"]["lthfunc"] = json.dumps(about)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + payload[8 + size :]


@pytest.mark.parametrize(
    "change",
    [
        lambda header, packed, about: packed["shapes"].update({"masks/w": [3000, 1]}),
        lambda header, packed, about: packed["shapes"].update({"masks/w": [-1, -3600]}),
        lambda header, packed, about: packed["shapes"].update({"masks/w": "3600"}),
        lambda header, packed, about: packed["shapes"].update({"masks/v": [10**12]}),
        lambda header, packed, about: packed["shapes"].update({"masks/v": [2000]}),
        lambda header, packed, about: packed["places"].update({"params/w": "masks/v"}),
        lambda header, packed, about: packed["places"].update({"params/w": "masks/x"}),
        lambda header, packed, about: packed["shapes"].pop("masks/w"),
        lambda header, packed, about: packed.pop("places"),
        lambda header, packed, about: about.pop("order"),
        lambda header, packed, about: about["order"].append("params/x"),
        lambda header, packed, about: about.update({"packed/1": [1]}),
        lambda header, packed, about: header["masks/v"].update({"dtype": "F32"}),
    ],
)
def test_damaged_headers_are_refused_in_one_line(change: Any, tmp_path: Path) -> None:
    mask, few = mask_of(0.1, 0), torch.zeros(4000, dtype=torch.bool).index_fill(0, torch.tensor([5, 70, 3000]), True)
    tree = {"params": {"w": drawn(mask, torch.float32, 1)}, "masks": {"w": mask, "v": few}}
    payload = tree_bytes(tree, packed=True)
    (tmp_path / "tree.safetensors").write_bytes(changed(payload, lambda *same: None))
    assert lf.same_bits(load_tree(tmp_path / "tree.safetensors")[0], tree)
    (tmp_path / "tree.safetensors").write_bytes(changed(payload, change))
    for read in (load_tree, lambda path: tree_of(path.read_bytes(), path)):
        with pytest.raises(UserError, match=r"tree\.safetensors: cannot be read as a safetensors file \(.*\)$"):
            read(tmp_path / "tree.safetensors")


@pytest.mark.parametrize("places", [[5, 5, 3000], [70, 5, 3000], [-1, 70, 3000], [5, 70, 4000]])
def test_places_that_do_not_rise_within_their_leaf_are_refused(places: list[int]) -> None:
    few = torch.zeros(4000, dtype=torch.bool).index_fill(0, torch.tensor([5, 70, 3000]), True)
    payload = tree_bytes({"masks": {"v": few}}, packed=True)
    stored = torch.tensor([5, 70, 3000], dtype=torch.int32).numpy().tobytes()
    assert payload.endswith(stored)
    damaged = payload.removesuffix(stored) + np.array(places, np.int32).tobytes()
    with pytest.raises(UserError, match="places are not rising numbers below 4,000"):
        tree_of(damaged, "file")
