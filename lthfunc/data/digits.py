"""The digits that scikit-learn bundles (UCI Optical Recognition of Handwritten Digits, test part): no network."""

from __future__ import annotations

import torch
from torch import Tensor


def read_digits() -> tuple[Tensor, Tensor]:
    """1,797 images (n, 1, 8, 8), float32 in [0, 1] (sixteenths), and targets int64."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().div_(16).unsqueeze(1)
    return images, torch.from_numpy(bunch.target).long()
