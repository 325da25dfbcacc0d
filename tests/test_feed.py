"""What reaches a step: the right examples, from memory or from a mapped file, and counter-based draws."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from conftest import NormedNet

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.training.batches import batches
from lthfunc.training.loop import fit
from lthfunc.training.prefetch import Prefetcher
from lthfunc.training.trainer import make_trainer
from lthfunc.trees.rng import counter_key, fold_in, integers
from lthfunc.trees.types import Dataset, Split

CPU = torch.device("cpu")


@pytest.mark.parametrize("seeds", [(5,), (5, 6, 5)])
def test_slots_hold_the_batches_of_their_steps(seeds: tuple[int, ...]) -> None:
    split = Split(torch.arange(250).float().view(50, 5), torch.arange(50))
    prefetcher = Prefetcher(split, 8, seeds, CPU)
    for start, stop in ((0, 4), (4, 20), (20, 21)):  # 6 batches an epoch: several epochs at once
        prefetcher.fill(start, stop, 21)
        for k, seed in enumerate(seeds):
            for slot, (x, y) in enumerate(batches(split, 8, seed, start, stop)):
                got_x, got_y = (part if len(seeds) == 1 else part[k] for part in prefetcher.batches[slot])
                assert torch.equal(got_x, x)
                assert torch.equal(got_y, y)


def test_a_mapped_file_trains_to_the_bits_of_memory(few_digits: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "digits.safetensors"
    lf.data.save_mapped(path, few_digits)
    mapped = lf.data.load(str(path))
    assert mapped.mapped
    assert mapped.classes == 10
    model = lf.from_module(NormedNet())
    fits = [
        fit(
            make_trainer(model, data, optimizer=lf.adam(1e-2), batch_size=7),
            lf.init(model),
            seed=1,
            until=150,
            eval_every=40,
        )
        for data in (few_digits, mapped)
    ]
    assert lf.same_bits(fits[0].state, fits[1].state)
    assert fits[0].curve[1:] == fits[1].curve[1:]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lthfunc-feed")]


def test_a_mapped_file_keeps_its_scale_and_others_are_refused(few_digits: Dataset, tmp_path: Path) -> None:
    data = few_digits._replace(scale=lf.Scale(255, (0.1,), (0.3,)))
    lf.data.save_mapped(tmp_path / "data.safetensors", data)
    assert lf.data.open_mapped(tmp_path / "data.safetensors").scale == data.scale
    with pytest.raises(UserError, match=r"ends in \.safetensors"):
        lf.data.save_mapped(tmp_path / "data.bin", data)
    lf.save_tree(tmp_path / "other.safetensors", {"x": torch.zeros(3)})
    with pytest.raises(UserError, match="is not a data set's file"):
        lf.data.load(str(tmp_path / "other.safetensors"))
    with pytest.raises(UserError, match="cannot be read"):
        lf.data.load(str(tmp_path / "absent.safetensors"))


def test_scales_normalise_each_channel() -> None:
    from lthfunc.trees.ops import scaled

    pixels = torch.randint(0, 256, (4, 3, 5, 5), dtype=torch.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    expected = (pixels / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(scaled(pixels, lf.Scale(255, mean, std)), expected)
    torch.testing.assert_close(scaled(pixels[:, :1], lf.Scale(255, mean[:1], std[:1])), expected[:, :1])


def test_counter_based_draws_are_uniform_and_unrelated() -> None:
    """Chi-square over values, and correlations between neighbouring steps, seeds and purposes."""
    draws = torch.stack([integers(fold_in(counter_key(0, "step"), step), 512, 9) for step in range(400)])
    counts = torch.bincount(draws.flatten(), minlength=9).double()
    expected = draws.numel() / 9
    assert ((counts - expected) ** 2 / expected).sum() < 26.1  # 0.999 quantile for 8 degrees of freedom
    other = torch.stack([integers(fold_in(counter_key(1, "step"), step), 512, 9) for step in range(400)])
    for a, b in ((draws[1:], draws[:-1]), (draws[:, 1:], draws[:, :-1]), (draws, other)):
        pair = torch.stack([a.flatten(), b.flatten()]).double()
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.01
    assert int(draws.min()) == 0
    assert int(draws.max()) == 8


def test_counter_based_draws_have_the_published_bits() -> None:
    """The integer arithmetic in int64 against Python's own, with the constants of lowbias32."""

    def mixed(x: int) -> int:
        x = ((x ^ x >> 16) * 0x7FEB352D) % 2**32
        x = ((x ^ x >> 15) * 0x846CA68B) % 2**32
        return x ^ x >> 16

    for key, number in ((0, 0), (1, 2), (0xFFFFFFFF, 7), (123456789, 2**31 - 1)):
        expected = mixed((mixed(key) + number * 0x9E3779B9) % 2**32)
        assert int(fold_in(torch.tensor(key), number)) == expected
