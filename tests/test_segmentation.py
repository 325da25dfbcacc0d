"""Losses and metrics of pixels, against scikit-learn and by hand; a network of pixels from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import with_splits
from lthfunc_cli.main import main
from sklearn.metrics import jaccard_score
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.errors import UserError

CLASSES = 4


def example(n: int = 5) -> tuple[Tensor, Tensor]:
    """Classes that some images lack, and pixels without one."""
    draw = torch.Generator().manual_seed(0)
    outputs = torch.randn(n, CLASSES, 6, 7, generator=draw)
    targets = torch.randint(0, CLASSES, (n, 6, 7), generator=draw)
    targets[0] %= 2
    targets[1, 2:] = 255
    return outputs, targets


def test_mean_iou_and_accuracy_are_means_over_images() -> None:
    outputs, targets = example()
    ious, right = [], []
    for guess, truth in zip(outputs.argmax(1), targets, strict=True):
        known = truth != 255
        a, b = guess[known].numpy(), truth[known].numpy()
        ious.append(jaccard_score(b, a, labels=np.union1d(a, b), average="macro"))
        right.append((a == b).mean())
    assert float(lf.mean_iou(outputs, targets)) == pytest.approx(np.mean(ious), rel=1e-9)
    assert float(lf.pixel_accuracy(outputs, targets)) == pytest.approx(np.mean(right), rel=1e-9)
    # Whatever the batches are.
    parts = [float(lf.mean_iou(outputs[i : i + 1], targets[i : i + 1])) for i in range(len(targets))]
    assert np.mean(parts) == pytest.approx(np.mean(ious))


def test_losses_of_pixels_by_hand() -> None:
    outputs, targets = example()
    wanted = F.cross_entropy(outputs, targets, ignore_index=255)
    torch.testing.assert_close(lf.pixel_cross_entropy(outputs, targets), wanted)
    dice = []
    for p, truth in zip(outputs.double().softmax(1).numpy(), targets.numpy(), strict=True):
        known = truth != 255
        found = [
            2 * p[label][known & (truth == label)].sum() / (p[label][known].sum() + (truth == label).sum())
            for label in range(CLASSES)
            if (truth == label).any()
        ]
        dice.append(1 - np.mean(found))
    assert float(lf.dice_loss(outputs, targets)) == pytest.approx(np.mean(dice), rel=1e-5)
    both = float(lf.dice_cross_entropy(outputs, targets))
    assert both == pytest.approx(float(wanted) + np.mean(dice), rel=1e-5)
    nothing = torch.full((2, 6, 7), 255)
    for function in (lf.pixel_cross_entropy, lf.dice_loss):
        leaf = outputs[:2].clone().requires_grad_()
        function(leaf, nothing).backward()
        assert leaf.grad is not None
        assert not leaf.grad.any()
    assert float(lf.mean_iou(outputs[:2], nothing)) == 1


class Net(nn.Module):
    """Each pixel by its surroundings, as torchvision's networks give them: by name."""

    def __init__(self) -> None:
        super().__init__()
        self.see, self.tell = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.tell(self.see(x).relu()), "aux": x}


def squares(n: int) -> tuple[Tensor, Tensor]:
    """Bright squares in noise; what is beside an image's border has no class."""
    draw = torch.Generator().manual_seed(n)
    y = torch.zeros(n, 12, 12, dtype=torch.int64)
    for image in y:
        top, left = torch.randint(0, 8, (2,), generator=draw).tolist()
        image[top : top + 4, left : left + 4] = 1
    x = y[:, None] + 0.3 * torch.randn(n, 1, 12, 12, generator=draw)
    y[:, 0] = 255
    return x, y


def test_vmapped_networks_learn_pixels() -> None:
    data = lf.data.from_tensors("squares", squares(90), squares(30), val=30)
    assert (data.classes, data.pixels) == (2, True)
    model = lf.from_module(Net())
    trainer = lf.make_trainer(
        model, data, optimizer=lf.adam(1e-2), batch_size=10, loss=lf.dice_cross_entropy, metric=lf.mean_iou
    )
    starts = [lf.prune(density=0.5)(lf.init(model, seed)) for seed in (0, 1)]
    fits = lf.fit_together(trainer, starts, seeds=[0, 1], until=60, eval_every=60)
    for fit in fits:
        assert fit.curve[0].val_accuracy < 0.6
        assert fit.best.point.val_accuracy > 0.8
        found = lf.accuracy_on(model, fit.state, data, "val", metric=lf.mean_iou)
        assert found == pytest.approx(fit.curve[-1].val_accuracy)


SOURCE = """
import torch
class Net(torch.nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.see, self.tell = torch.nn.Conv2d(shape[0], 6, 3, padding=1), torch.nn.Conv2d(6, classes, 3, padding=1)
    def forward(self, x):
        return self.tell(torch.relu(self.see(x)))
"""


def test_pixels_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(SOURCE)
    (x, y), (x_test, y_test) = squares(60), squares(20)
    np.savez("squares.npz", x_train=x, y_train=y.numpy().astype(np.uint8), x_test=x_test, y_test=y_test)
    command = "prune --dataset npz:squares.npz --rounds 1 --steps 40 --batch-size 10 --lr 0.01"
    assert main(f"{command} --arch net.py:Net --out run --json".split()) == 0
    assert json.loads(capsys.readouterr().out)["rounds"][1]["val_accuracy"]["mean"] > 0.6
    assert main(["info", "run"]) == 0
    assert "val mean-iou %" in capsys.readouterr().out
    assert main(["datasets", "show", "npz:squares.npz"]) == 0
    assert "share of training" in capsys.readouterr().out
    for option, words in [
        ("--arch lenet300", "--arch: 'lenet300' gives outputs of shape (2,), not (2, 12, 12)"),
        ("--arch net.py:Net --loss mse", "--loss: invalid value 'mse' (expected pixel-cross-entropy, dice, dice-cross"),
        ("--arch net.py:Net --metric top-5", "--metric: invalid value 'top-5' (expected mean-iou, pixel-accuracy or"),
    ]:
        assert main([*command.split(), *option.split(), "--out", "refused"]) == 2
        assert words in " ".join(capsys.readouterr().err.split())
        assert not Path("refused").exists()


def test_torchvisions_networks_of_pixels_are_made_without_downloading_their_backbones() -> None:
    data = lf.data.from_tensors("squares", squares(9), squares(2), val=1)
    colour = with_splits(data, lambda split: split._replace(x=split.x.expand(-1, 3, -1, -1)))
    model = lf.models.build_for("torchvision:lraspp_mobilenet_v3_large", colour)
    assert 0 <= lf.accuracy_on(model, lf.init(model), colour, metric=lf.mean_iou) <= 1


@pytest.mark.parametrize("function", [lf.pixel_cross_entropy, lf.dice_loss, lf.mean_iou, lf.pixel_accuracy])
def test_other_shapes_are_refused(function: Any) -> None:
    outputs, targets = example()
    for wrong in (targets[:, 1:], targets.flatten(1), targets.float(), [1]):
        with pytest.raises(UserError, match=rf"^{function.__name__}: expected outputs \(n, classes, height, width\)"):
            function(outputs, wrong)
