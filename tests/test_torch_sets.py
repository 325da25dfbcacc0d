"""Anybody's data sets decoded once: against plain loops over them, kept, found again, and refused in one line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset as TorchDataset, IterableDataset, TensorDataset
from torchvision.datasets import FakeData

import lthfunc as lf
from lthfunc.data import decoded, mapped
from lthfunc.data.digests import object_digest
from lthfunc.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LTHFUNC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "data"


class Squares(TorchDataset[Any]):
    """Numbers and whether their squares are large; counts what is read."""

    def __init__(self, count: int = 60, dtype: Any = torch.float32) -> None:
        self.values, self.read, self.dtype = torch.arange(count * 3).view(count, 3) / 50, 0, dtype

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, number: int) -> Any:
        self.read += 1
        return self.values[number].to(self.dtype), int(self.values[number].square().sum() > 4)


def all_of(data: lf.Dataset) -> Tensor:
    return torch.cat([data.train.x, data.val.x, data.test.x])


def test_each_example_comes_into_one_split(cache: Path) -> None:
    theirs = Squares()
    data = lf.data.from_dataset("squares", theirs, val=7)
    assert [len(split.x) for split in data[1:4]] == [47, 7, 6]
    assert torch.equal(all_of(data).sort(0).values, theirs.values)
    for split in data[1:4]:
        assert torch.equal(split.y, (split.x.square().sum(1) > 4).long())
    assert (data.classes, data.mapped, data.scale) == (2, False, None)
    again = lf.data.from_dataset("squares", Squares(), val=7)
    assert lf.same_bits(data[1:4], again[1:4])
    given = lf.data.from_dataset("squares", theirs, Squares(5), val=Squares(9))
    assert [len(split.x) for split in given[1:4]] == [60, 9, 5]
    assert torch.equal(given.train.x, theirs.values)  # in its order
    assert len(list(cache.iterdir())) == 2


def test_a_data_set_is_read_once_and_again_when_it_changes(cache: Path) -> None:
    first = Squares()
    lf.data.from_dataset("squares", first)
    probes = 33  # the first, and sixteen of them twice
    assert first.read == probes + 60
    second = Squares()
    lf.data.from_dataset("squares", second)
    assert second.read == probes
    second.values[17] += 1  # which is no probe
    second.read = 0
    assert 17 not in [round(at * 59 / 15) for at in range(16)]
    changed = lf.data.from_dataset("squares", second)
    assert second.read == probes + 60
    assert torch.equal(all_of(changed).sort(0).values, second.values.sort(0).values)
    count = len(list(cache.iterdir()))
    lf.data.from_dataset("squares", Squares(), cache="2")
    assert len(list(cache.iterdir())) == count + 1
    lf.data.from_dataset("squares", Squares(), cache=False)
    assert len(list(cache.iterdir())) == count + 1


def test_digests_follow_contents_and_no_addresses() -> None:
    def made(labels: list[int], power: int = 2) -> Any:
        return {"x": torch.arange(4.0), "f": lambda x: x**power, "set": {"b", "a", *"cdefgh"}, "labels": labels,
                "kind": Squares, "bound": Squares(3).__len__}  # fmt: skip

    assert object_digest(made([1, 2])) == object_digest(made([1, 2]))
    assert len({object_digest(made([1, 2])), object_digest(made([1, 3])), object_digest(made([1, 2], 3))}) == 3
    assert object_digest(lambda x: x + 1) != object_digest(lambda x: x + 2)
    assert object_digest(i for i in range(3)).endswith("generator")  # cannot be pickled


def test_images_are_stored_as_levels_and_scaled_by_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = FakeData(40, (3, 6, 5), 4)
    for name in ("in memory", "mapped"):
        if name == "mapped":
            monkeypatch.setattr(mapped, "_INTO_MEMORY", 1)
        data = lf.data.from_dataset("fake", theirs, classes=4, labels=list("abcd"))
        assert (data.mapped, data.shape, data.labels) == (name == "mapped", (3, 6, 5), tuple("abcd"))
        wanted = sorted(np.asarray(theirs[at][0]).transpose(2, 0, 1).tobytes() for at in range(40))
        assert sorted(image.numpy().tobytes() for image in all_of(data)) == wanted
        pixels = data.train.x.double() / 255
        assert data.scale is not None
        assert data.scale.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist())
        assert data.scale.std == pytest.approx(pixels.transpose(0, 1).flatten(1).std(1, correction=0).tolist())
    grey = [(each.convert("L"), y) for each, y in (theirs[at] for at in range(40))]
    assert lf.data.from_dataset("grey", grey, classes=10).shape == (1, 6, 5)
    arrays = [(np.asarray(each), y) for each, y in (theirs[at] for at in range(40))]
    assert torch.equal(lf.data.from_dataset("fake", arrays, classes=10).train.x, data.train.x)  # channels last, too


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_read_the_same_and_say_what_they_cannot(workers: int) -> None:
    seen: list[tuple[int, int]] = []
    data = lf.data.from_dataset("squares", Squares(200), workers=workers, observe=lambda *each: seen.append(each))
    assert torch.equal(all_of(data).sort(0).values, Squares(200).values)
    assert seen[-1] == (200, 200)

    class Broken(Squares):
        def __getitem__(self, number: int) -> Any:
            if number == 63:
                raise OSError("the disk is gone")
            return super().__getitem__(number)

    with pytest.raises(UserError) as caught:
        lf.data.from_dataset("broken", Broken(200), workers=workers)
    assert str(caught.value).startswith("train: example 63 cannot be read (line ")
    assert str(caught.value).endswith("(OSError: the disk is gone)")


class Counting(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return ((torch.full((2, 3), float(i)), i % 3) for i in range(50))


class Sized(Counting):
    def __len__(self) -> int:
        return 50


def test_iterables_are_read_to_their_ends(cache: Path) -> None:
    for theirs in (Counting(), Sized(), iter(Counting())):
        data = lf.data.from_dataset("counting", theirs, val=5)
        assert all_of(data)[:, 0, 0].sort().values.tolist() == list(range(50))
        assert torch.equal(data.train.y, data.train.x[:, 0, 0].long() % 3)
    first, second = (lf.data.from_dataset("counting", each) for each in (Counting(), iter(Counting())))
    assert lf.same_bits(first[1:4], second[1:4])
    assert not list(cache.glob(".spool*"))


def test_tokens_numbers_and_several_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = [([i % 7, (i + 1) % 7, 3], [(i + 1) % 7, 3, i % 7]) for i in range(30)]
    data = lf.data.from_dataset("tokens", tokens)
    assert data.tokens
    assert (data.train.y.dtype, tuple(data.train.y.shape), data.classes) == (torch.int64, (24, 3), 7)
    numbers = lf.data.from_dataset("numbers", [(float(i), i / 3) for i in range(30)])
    assert torch.allclose(numbers.train.y, numbers.train.x / 3)
    assert numbers.train.y.dtype is numbers.train.x.dtype is torch.float32
    monkeypatch.setattr(mapped, "_INTO_MEMORY", 1)
    examples = [({"image": torch.full((1, 2, 2), float(i)), "size": torch.tensor([i])}, i % 2) for i in range(30)]
    several = lf.data.from_dataset("several", examples)
    assert several.mapped
    assert [(part.name, part.shape, part.dtype) for part in several.parts] == [
        ("image", (1, 2, 2), torch.float32), ("size", (1,), torch.int64),
    ]  # fmt: skip

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(5, 2)

        def forward(self, image: Tensor, size: Tensor) -> Tensor:
            out: Tensor = self.fc(torch.cat([image.flatten(1), size.float()], 1))
            return out

    model = lf.from_module(Net(), parts=several.parts)
    assert lf.train(model, several, optimizer=lf.sgd(0.01), steps=2, batch_size=4)(lf.init(model)).step == 2


def dicts(count: int = 20) -> list[Any]:
    return [{"text": i, "label": i % 2} for i in range(count)]


def uneven(kind: str) -> list[Any]:
    return [(torch.ones(3 if i != 11 else 4), 0) if kind == "x" else (torch.ones(3), 0 if i != 11 else 0.5)
            for i in range(20)]  # fmt: skip


class Noisy(Squares):
    def __getitem__(self, number: int) -> Any:
        x, y = super().__getitem__(number)
        return x + torch.rand(3), y


BAD: dict[str, tuple[Any, str]] = {
    "random": (lambda: Noisy(), "train: example 0 differs each time it is read, so it cannot be decoded once;"),
    "dicts": (dicts, "train: example 0: is a dict of text, label, not a pair (inputs, target); pair=lambda example: "),
    "other shapes": (lambda: uneven("x"), "train: example 11 has inputs of float32 of shape (4,), but the first"),
    "other targets": (lambda: uneven("y"), "train: example 11 has a target of float32 of shape (1,), but the first"),
    "not finite": (lambda: [(torch.ones(2) * (i / (i != 7) if i != 7 else float("inf")), 0) for i in range(20)],
                   "train: example 7 holds inputs that are not finite"),
    "nothing": (list, "train: no examples"),
    "an empty iterable": (lambda: iter(()), "train: no examples"),
    "a tensor": (lambda: torch.ones(3, 4), "train: invalid value: a Tensor of shape (3, 4) (expected a data set of"),
    "a number": (lambda: 0.5, "train: invalid value: a float (expected a data set of examples)"),
    "texts": (lambda: [("a", 0)] * 9, "train: example 0: invalid value: "),
    "classes": (lambda: [(torch.ones(2), -1 if i == 4 else 0) for i in range(20)], "train: target -1 of example "),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_decoded_is_one_line_and_leaves_no_file(name: str, cache: Path) -> None:
    make, words = BAD[name]
    with pytest.raises(UserError) as caught:
        lf.data.from_dataset("bad", make(), val=0.2)
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)
    assert not cache.exists() or not list(cache.iterdir())


def test_shares_and_pairs(cache: Path) -> None:
    for value in (0, 1.5, -1, True, 0.0):
        with pytest.raises(UserError, match="val: invalid value"):
            lf.data.from_dataset("squares", Squares(), val=value)
    with pytest.raises(UserError, match="too few for validation and test splits"):
        lf.data.from_dataset("squares", Squares(), 30, val=30)
    with pytest.raises(UserError, match="test: its examples have other shapes, types or names than those of train"):
        lf.data.from_dataset("squares", Squares(), TensorDataset(torch.ones(4, 2), torch.arange(4)))
    data = lf.data.from_dataset("dicts", dicts(), pair=lambda example: (float(example["text"]), example["label"]))
    assert torch.equal(data.train.y, data.train.x[:, 0].long() % 2)
    with pytest.raises(UserError, match="pair: '<lambda>' fails"):
        lf.data.from_dataset("dicts", dicts(), pair=lambda example: example["none"])


def test_an_interrupted_decoding_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(Squares):
        def __getitem__(self, number: int) -> Any:
            if self.read > 50:
                raise KeyboardInterrupt
            return super().__getitem__(number)

    with pytest.raises(KeyboardInterrupt):
        lf.data.from_dataset("interrupted", Interrupted())
    assert not list(cache.iterdir())
    monkeypatch.setattr(decoded, "_WORTH_WORKERS", -1.0)  # as if reading took long
    assert len(lf.data.from_dataset("squares", Squares()).train.x) == 48
