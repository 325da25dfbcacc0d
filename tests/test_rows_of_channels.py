"""Images of one place as one row of their channels: fewer rows of an instruction, and the same numbers."""

from __future__ import annotations

import pytest
import torch
from sparse_programs import check, check_inference, kernels  # noqa: F401
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.sparse.capture import captured
from lthfunc.sparse.kernels import build
from lthfunc.sparse.kernels.instructions import OPCODES, column_of
from lthfunc.sparse.program import Epilogue, Stored, program_of

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))


class Features(nn.Module):
    """Additions, copies and pointwise functions of features, or of images of some places."""

    def __init__(self, places: int) -> None:
        super().__init__()
        self.places = places
        self.first, self.second, self.head = nn.Linear(6, 20), nn.Linear(20, 20), nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.unflatten(1, (self.places, 6)).squeeze(1))
        y = torch.tanh(self.second(x))
        x = x.sigmoid() + y + torch.cat([y[..., 10:], x[..., :10]], -1)
        found: Tensor = self.head(x if self.places == 1 else x.mean(1))
        return found


@pytest.mark.parametrize("places", [1, 3])
def test_rows_are_channels_or_one_of_all_channels(places: int) -> None:
    check(Features(places), (6 * places,))
    check_inference(Features(places), (6 * places,))
    model = lf.from_module(Features(places))
    rows = program_of(
        captured(model, (6 * places,), training=True), *model.init(0), {}, batch=20,
        stored=Stored((6 * places,), torch.float32), epilogue=Epilogue(),
    ).code.rows  # fmt: skip
    for name in ("pointwise", "pointwise_gradient"):
        found = rows[rows[:, 0] == OPCODES[name]]
        sizes = list(zip(found[:, 2].tolist(), found[:, column_of(name, "width")].tolist(), strict=True))
        assert sizes.count((1, 20) if places == 1 else (20, 3)) == 2
