"""The bundled digits: the test part of UCI's "Optical Recognition of Handwritten Digits"; see digits.LICENSE."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def read_digits() -> tuple[Tensor, Tensor]:
    """1,797 images (n, 1, 8, 8), float32 in [0, 1] (sixteenths), and targets int64."""
    with np.load(Path(__file__).with_name("digits.npz")) as file:
        images, targets = torch.from_numpy(file["images"]), torch.from_numpy(file["targets"])
    return images.float().div_(16).unsqueeze(1), targets.long()
