"""Augmentations: against torchvision's functions of the drawn parameters, and the same wherever they are drawn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

import lthfunc as lf
from lthfunc.data.augment.boxes import STREAMS, random_boxes
from lthfunc.data.augment.colors import jittered
from lthfunc.data.augment.crops import enlarged
from lthfunc.data.augment.draws import below, from_levels, image_keys, levels_of, symmetric_beta, uniform
from lthfunc.data.augment.policies import OPERATIONS, operated
from lthfunc.errors import UserError
from lthfunc.trees.augmenting import Augment, changes_targets
from lthfunc.trees.rng import counter_key

KEY = counter_key(3, "step")
SCALE = lf.Scale(255, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26))


def pixels(count: int = 64, height: int = 12, width: int = 16, channels: int = 3) -> Tensor:
    """Images of 256 levels."""
    draw = torch.Generator().manual_seed(1)
    smooth = torch.rand(count, channels, 4, 4, generator=draw)
    return (nn.functional.interpolate(smooth, (height, width), mode="bicubic").clamp(0, 1) * 255).round().byte()


def test_levels_come_back_from_normalised_pixels() -> None:
    normal = from_levels(pixels().float() / 255, SCALE)
    torch.testing.assert_close(levels_of(normal, SCALE) * 255, pixels().float(), atol=1e-3, rtol=0)
    means = torch.tensor(SCALE.mean).view(3, 1, 1), torch.tensor(SCALE.std).view(3, 1, 1)
    torch.testing.assert_close(normal, (pixels().float() / 255 - means[0]) / means[1])


@pytest.mark.parametrize("size", [(12, 16), (9, 9), (24, 10)])
def test_crops_are_torchvision_s(size: tuple[int, int]) -> None:
    images = pixels(200, *size).float()
    boxes, found = random_boxes(image_keys(KEY, 200), size, (0.08, 1.0), (3 / 4, 4 / 3), whole=True)
    assert found.double().mean() > 0.9
    areas = (boxes.height * boxes.width)[found] / (size[0] * size[1])
    assert 0.05 < areas.min() < 0.3
    assert 0.5 < areas.max() <= 1
    assert all(int(part.max()) > 0 for part in (boxes.top, boxes.left))
    result = lf.random_resized_crop()(images, KEY)
    for image, cut, drawn, *box in zip(images, result, found, *boxes, strict=True):
        if drawn:
            wanted = F.resized_crop(image, *map(int, box), list(size), antialias=True)
            torch.testing.assert_close(cut, wanted, atol=1e-3, rtol=1e-5)
    if size == (24, 10):  # too narrow for whole images: those without a box are cut at the centre
        alone = next(int(at) for at in (~found).nonzero())
        wanted = F.resized_crop(images[alone], 5, 0, 13, 10, list(size), antialias=True)
        torch.testing.assert_close(result[alone], wanted, atol=1e-3, rtol=1e-5)
    assert torch.equal(enlarged(images, boxes._replace(**dict.fromkeys(("top", "left"), torch.zeros(200).long()),
                                                       height=torch.full((200,), size[0]),
                                                       width=torch.full((200,), size[1]))), images)  # fmt: skip


@pytest.mark.parametrize("channels", [1, 3])
def test_colours_are_torchvision_s(channels: int) -> None:
    levels = pixels(30, channels=channels).float() / 255
    draw = torch.Generator().manual_seed(0)
    factors = [0.3 + 1.4 * torch.rand(30, generator=draw) for _ in range(3)]
    hue, order = torch.rand(30, generator=draw) - 0.5, torch.rand(4, 30, generator=draw).argsort(0)
    result = jittered(levels, factors[0], factors[1], factors[2], hue, order)
    change = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    for at in range(30):
        wanted, values = levels[at], [*(float(factor[at]) for factor in factors), float(hue[at])]
        for number in order[:, at].tolist():
            wanted = change[number](wanted, values[number])
        torch.testing.assert_close(result[at], wanted, atol=2e-5, rtol=0)
    # What is drawn: each image's own factors and order, in their ranges.
    scale = SCALE if channels == 3 else lf.Scale(255, (0.5,), (0.25,))
    keys = image_keys(KEY, 30)
    drawn = [uniform(keys, number, 0.6, 1.4) for number in range(3)]
    order = torch.stack([uniform(keys, 4 + number) for number in range(4)]).argsort(0)
    wanted = from_levels(jittered(levels, drawn[0], drawn[1], drawn[2], uniform(keys, 3, -0.1, 0.1), order), scale)
    torch.testing.assert_close(lf.color_jitter(scale)(from_levels(levels, scale), KEY), wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_those_of_torchvision_s_randaugment(name: str) -> None:
    theirs = v2.RandAugment()
    words = {"color": "Color", "autocontrast": "AutoContrast"}
    word = words.get(name, "".join(part.capitalize() for part in name.split("-")))
    amounts, signed = theirs._AUGMENTATION_SPACE[word]
    levels = pixels(8, 18, 21).float() / 255
    levels[0, 1] = 0.25  # a flat channel
    for magnitude in (1, 9, 15, 30):
        table = amounts(31, 18, 21)
        for sign in (1, -1) if signed else (1,):
            amount = 0.0 if table is None else sign * float(table[magnitude])
            wanted = torch.stack([
                theirs._apply_image_or_video_transform(each.clone(), word, amount, v2.InterpolationMode.NEAREST, {})
                for each in levels
            ])  # fmt: skip
            which = torch.full((8,), OPERATIONS.index(name))
            result = operated(levels, which, torch.full((8,), sign), magnitude)
            same = (result - wanted).abs() < 1e-5
            assert same.double().mean() > 0.99, (magnitude, sign)  # between two pixels either may be the nearest


def test_randaugment_draws_each_operation_alike() -> None:
    keys = image_keys(KEY, 14_000)
    for layer in range(2):
        counts = below(keys, 2 * layer, len(OPERATIONS)).bincount(minlength=len(OPERATIONS))
        assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    levels = pixels(40).float() / 255
    result, wanted = lf.rand_augment(SCALE, 2, 12)(from_levels(levels, SCALE), KEY), levels
    for layer in range(2):
        which, sign = below(keys[:40], 2 * layer, 14), 1 - 2 * below(keys[:40], 2 * layer + 1, 2)
        wanted = operated(wanted, which, sign, 12)
    close = (result - from_levels(wanted, SCALE)).abs() < 1e-4
    assert close.double().mean() > 0.999  # levels are normalised and back, so a threshold may be met or not


def test_erasing_is_torchvision_s() -> None:
    images = pixels(400).float() + 1
    boxes, found = random_boxes(image_keys(KEY, 400), (12, 16), (0.02, 1 / 3), (0.3, 3.3), whole=False)
    chosen = found & (uniform(image_keys(KEY, 400), STREAMS) < 0.25)
    assert 70 < int(chosen.sum()) < 130
    for image, result, drawn, *box in zip(images, lf.random_erasing(0.25)(images, KEY), chosen, *boxes, strict=True):
        wanted = F.erase(image, *map(int, box), v=torch.zeros(1, 1, 1)) if drawn else image
        assert torch.equal(result, wanted)


def test_squares_are_cut_out_around_every_pixel() -> None:
    images, seen = torch.ones(4000, 1, 12, 16), torch.zeros(12, 16)
    for side, result in ((6, lf.cutout()(images, KEY)), (5, lf.cutout(5)(images, KEY))):
        gone = result[:, 0] == 0
        high, wide = gone.any(2).sum(1), gone.any(1).sum(1)
        assert torch.equal(gone.sum((1, 2)), high * wide)  # rectangles
        assert (int(high.max()), int(wide.max())) == (side, side)
        assert int(high.min()) == int(wide.min()) == side - side // 2  # half of them outside
        seen += gone.sum(0)
    assert bool((seen > 0).all())


def test_images_are_mirrored_and_shifted_apart() -> None:
    images = pixels(300).float()
    turned = lf.mirror(images, KEY)
    mirrored = (turned == images.flip(3)).flatten(1).all(1)
    assert 110 < int(mirrored.sum()) < 190
    assert torch.equal(turned[~mirrored], images[~mirrored])
    moved = lf.shift(2)(images, KEY)
    offsets = set()
    for image, found in zip(images[:100], moved, strict=False):
        padded = nn.functional.pad(image, (2, 2, 2, 2))
        places = [(y, x) for y in range(5) for x in range(5) if torch.equal(padded[:, y : y + 12, x : x + 16], found)]
        offsets.update(places[:1])
        assert places
    assert len(offsets) == 25
    both = lf.shift_and_mirror(images, KEY)
    assert torch.equal(both, torch.where(mirrored.view(-1, 1, 1, 1), lf.shift(4)(images, KEY).flip(3), both))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 2.5])
def test_shares_have_a_beta_distribution(alpha: float) -> None:
    shares = symmetric_beta(image_keys(KEY, 20_000), 0, alpha).double().numpy()
    small = shares[shares < 0.5]  # others are rounded, near 1, where a small alpha has many
    assert stats.binomtest(len(small), len(shares)).pvalue > 1e-3
    assert stats.kstest(small, lambda x: 2 * stats.beta(alpha, alpha).cdf(x)).pvalue > 1e-3


EVERY: dict[str, Augment] = {
    "flip-crop": lf.shift_and_mirror, "flip": lf.mirror, "shift": lf.shift(), "resized-crop": lf.random_resized_crop(),
    "color-jitter": lf.color_jitter(SCALE), "randaugment": lf.rand_augment(SCALE), "erasing": lf.random_erasing(),
    "cutout": lf.cutout(), "mixup": lf.mixup(5), "cutmix": lf.cutmix(5), "mixup-or-cutmix": lf.mixup_or_cutmix(5),
    "all": lf.augmentations(
        lf.random_resized_crop(), lf.color_jitter(SCALE), lf.rand_augment(SCALE), lf.cutout(), lf.mixup_or_cutmix(5)
    ),
}  # fmt: skip


def applied(augment: Augment, x: Tensor, y: Tensor, key: Tensor, *place: int) -> Any:
    return augment(x, y, key, *place) if changes_targets(augment) else augment(x, key, *place)


@pytest.mark.parametrize("name", EVERY)
def test_draws_depend_on_the_key_and_the_place_in_the_batch_alone(name: str) -> None:
    augment, x, y = EVERY[name], from_levels(pixels(24).float() / 255, SCALE), torch.arange(24) % 5
    whole = applied(augment, x, y, KEY)
    state = torch.get_rng_state()
    torch.testing.assert_close(applied(augment, x, y, KEY), whole, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)  # no global generator
    part = applied(augment, x[8:16], y[8:16], KEY, 8)
    torch.testing.assert_close(part, lf.tree_map(lambda each: each[8:16], whole), rtol=0, atol=1e-5)
    other = counter_key(4, "step")
    both = torch.vmap(lambda key: applied(augment, x, y, key))(torch.stack([KEY, other]))
    torch.testing.assert_close(lf.tree_map(lambda each: each[0], both), whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        lf.tree_map(lambda each: each[1], both), applied(augment, x, y, other), rtol=0, atol=1e-5
    )
    (first, *_), (second, *_) = (
        each if isinstance(each, tuple) else (each,) for each in (whole, applied(augment, x, y, other))
    )
    assert first.shape == x.shape
    assert not torch.equal(first, second)
    if "mix" in name or name == "all":
        with pytest.raises(UserError, match="each rank's part of a batch must be even, not 7"):
            applied(augment, x[:7], y[:7], KEY, 0)


def test_parts_of_a_sequence_have_keys_of_their_own() -> None:
    x = pixels().float()
    twice = lf.augmentations(lf.mirror, lf.mirror)(x, KEY)
    assert not torch.equal(twice, x)  # with one key, the second would undo the first
    assert lf.augmentations(lf.mirror) is lf.mirror


def cropped(inputs: Tensor, key: Tensor, first: int = 0) -> Tensor:
    return inputs[..., 1:]


@pytest.mark.parametrize("augment", [cropped, lf.augmentations(lf.mirror, cropped)])
def test_an_own_one_is_checked_among_others_too(few_digits: lf.Dataset, augment: Any) -> None:
    model = lf.models.lenet300(few_digits.shape, few_digits.classes)
    train = lf.train(model, few_digits, optimizer=lf.sgd(0.1), steps=2, augment=augment, engine="eager")
    with pytest.raises(UserError, match=r"augment: .* returned float32 of shape .* for inputs of float32 of shape"):
        train(lf.init(model))
