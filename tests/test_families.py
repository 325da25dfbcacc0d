"""Networks of torchvision that the sparse engine trains."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lthfunc as lf
from benchmarks.families import run
from lthfunc.sparse.capture import captured
from lthfunc.sparse.program import Epilogue, Stored, program_of


def test_networks_run_or_are_refused_by_an_operation() -> None:
    found = run(networks=["squeezenet1_1", "swin_t"])
    assert found["squeezenet1_1"] is None
    assert found["swin_t"] is not None
    assert "no rule for index in swin_t" in found["swin_t"]


def test_means_of_windows_with_padding_that_is_cut_off_are_refused() -> None:
    model, shape = lf.from_module(nn.Sequential(nn.Conv2d(1, 1, 1), nn.AvgPool2d(3, 2, ceil_mode=True))), (1, 6, 6)
    with pytest.raises(lf.UserError, match="no rule for avg_pool2d whose last windows are cut off"):
        program_of(
            captured(model, shape, training=False), *model.init(0), {}, batch=1, stored=Stored(shape, torch.float32),
            epilogue=Epilogue(None, gradients=False),
        )  # fmt: skip
