"""What cannot be streamed, in one line that names it, before anything is trained."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from test_streams import (
    MODEL,
    Batches,
    Endless,
    Lines,
    Noisy,
    X,
    Y,
    cache,  # noqa: F401
    endless,
    loader,
    streamed,
)
from torch.utils.data import DataLoader, DistributedSampler, Sampler, TensorDataset, WeightedRandomSampler

import lthfunc as lf
from lthfunc.data.content_checks import check_classes
from lthfunc.errors import UserError


class Restless(Sampler[int]):
    """An order that no seed repeats."""

    count = 0

    def __len__(self) -> int:
        return 22

    def __iter__(self) -> Iterator[int]:
        Restless.count += 1
        return iter([(Restless.count + number) % 22 for number in range(22)])


class Moving:
    """Other batches in each reading."""

    count = 0

    def __iter__(self) -> Iterator[Any]:
        self.count += 1
        yield X[:4] + self.count, Y[:4]


class Broken(Noisy):
    def __getitem__(self, number: int) -> Any:
        if number == 7:
            raise OSError("the disk is gone")
        return super().__getitem__(number)


class Own(Noisy):
    """Draws with a generator that nothing seeds."""

    generator = np.random.default_rng(0)

    def __getitem__(self, number: int) -> Any:
        return X[number] + float(self.generator.random()), Y[number]


def leaves_out(batch: list[Any]) -> Any:
    kept = [(x, y) for x, y in batch if not torch.equal(x, X[7])]
    return torch.stack([x for x, _ in kept]) if kept else X[:0], torch.tensor([int(y) for _, y in kept])


def fitted(train: Any, **more: Any) -> Any:
    return lf.train(MODEL, streamed(train, **more), optimizer=lf.sgd(0.1), steps=28, batch_size=10)(lf.init(MODEL))


#: More examples than are looked at before training, of which the last have a class of their own.
LATE = [(X, Y)] * 12 + [(X, Y + 1)]


def uneven(batch: list[Any]) -> Any:
    return torch.stack([x for x, _ in batch])[:, : 2 + (len(batch) != 5)], torch.stack([y for _, y in batch])


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "a generator": (lambda: streamed(iter(loader())), "train: a _SingleProcessDataLoaderIter can be read only once"),
    "a sampler": (lambda: streamed(loader(sampler=Restless())), "train: its Restless draws another order each time"),
    "an endless sampler": (lambda: streamed(loader(sampler=Endless())), "train: its Endless has no length; examples=N"),
    "a sampler of ranks": (lambda: streamed(loader(sampler=DistributedSampler(X, 2, 0))),  # type: ignore[arg-type]
                           "train: its DistributedSampler gives each rank other examples; leave it out"),
    "no examples": (lambda: streamed(endless, examples=0), "examples: invalid value 0 (expected a whole number above"),
    "an iterable": (lambda: streamed(Moving()), "train: gives other batches each time it is read, so no run could be"),
    "no length": (lambda: streamed(Batches()), "train: has no length; examples=N says how many"),
    "an early end": (lambda: lf.train(MODEL, streamed(Batches(), examples=20), optimizer=lf.sgd(0.1), steps=4,
                                      batch_size=5)(lf.init(MODEL)),
                     "train: epoch 0 ended after 1 batches of 5, not 4; examples=N says how many examples"),
    "held out of a sampler": (lambda: streamed(loader(sampler=WeightedRandomSampler([1.0] * 22, 22)), val=3),
                              "train: its WeightedRandomSampler chooses among all examples, so none can be held out"),
    "held out of an iterable": (lambda: streamed(loader(Lines()), val=0.5), "val: 0.5 of an iterable cannot be held"),
    "classes": (lambda: streamed(classes=None), "classes: a stream does not show how many there are; pass classes=N"),
    "random held out": (lambda: lf.data.from_loader("held", loader(Noisy()), classes=2),
                        "val: example 0 differs each time it is read, so it cannot be decoded once; give val= and"),
    "levels": (lambda: streamed(loader(TensorDataset(torch.zeros(22, 1, 2, 2).byte(), Y))), "scale: a stream does not"),
    "an example": (lambda: streamed(loader(Broken())), "train: example 7 cannot be read (line "),
    "a batch": (lambda: lf.train(MODEL, streamed(loader(collate_fn=uneven)), optimizer=lf.sgd(0.1), steps=4,
                                 batch_size=5)(lf.init(MODEL)), "train: the batch of step 0 has inputs of float32"),
    "a target": (lambda: fitted(DataLoader(TensorDataset(*map(torch.cat, zip(*LATE, strict=True))), 4)),
                 "train: the batch of step 26: target 2 is outside the 2 classes, 0 to 1"),
    "a target of a batch": (lambda: fitted(LATE),
                            "train: batch 12 of epoch 0: target 2 is outside the 2 classes, 0 to 1"),
    "fewer of a batch": (lambda: streamed(loader(collate_fn=leaves_out)),
                         "train: the batch of step 0: its collate_fn makes 21 examples of 22"),
    "fewer of a test set": (lambda: lf.data.from_loader("t", loader(), loader(collate_fn=leaves_out), classes=2),
                            "test: example 7: its collate_fn makes 0 examples of one"),
    "its own generator": (lambda: streamed(loader(Own())), "train: gives other batches each time it is read, so no"),
    "ragged batches": (lambda: streamed([(X, Y), (X[:, :2], Y)]), "train: batch 1 of epoch 0 has inputs of float32"),
    "no batches": (lambda: streamed([]), "train: no batches"),
    "a number": (lambda: streamed(7), "train: invalid value: an int (expected a DataLoader or an iterable of batches)"),
    "its file": (lambda: lf.data.save_mapped("x.safetensors", streamed()), "x.safetensors: the training examples of"),
    "its size": (lambda: lf.make_trainer(MODEL, streamed(), optimizer=lf.sgd(0.1), batch_size=60),
                 "batch_size: invalid value 60 (expected a whole number from 1 to 22, the training examples)"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_streamed_is_one_line(name: str) -> None:
    make, words = BAD[name]
    with pytest.raises(UserError) as caught:
        make()
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)


def test_pixels_without_a_class_are_no_wrong_targets() -> None:
    y = torch.tensor([[[0, 1], [255, 1]]])
    check_classes(y, 2, "train")
    check_classes(y[:0], 2, "train")
    check_classes(y + 1, None, "train")
    with pytest.raises(UserError, match=r"^train: target 255 is outside the 2 classes, 0 to 1$"):
        check_classes(y.flatten(), 2, "train")


def test_a_loader_that_needs_processes_where_there_can_be_none(monkeypatch: pytest.MonkeyPatch) -> None:
    this: Any = multiprocessing.current_process()
    monkeypatch.setitem(this._config, "daemon", True)
    words = "its DataLoader has num_workers=1, but worker processes cannot start others; use jobs 1, or num_workers=0"
    for part, made in {"train": {"train": loader(Lines(), 1)}, "val": {"val": loader(Lines(), 1)}}.items():
        with pytest.raises(UserError) as caught:
            streamed(**made)
        assert str(caught.value) == f"{part}: {words}"
