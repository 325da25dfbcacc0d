"""Lists of survivors that somebody hands to the products of a layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lthfunc.sparse.kernels import build
from lthfunc.sparse.tile_buffers import LANES

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))


@pytest.mark.parametrize(
    "changed",
    [
        {"starts": torch.tensor([0, 3, 2], dtype=torch.int32)},
        {"starts": torch.tensor([0, 1], dtype=torch.int32)},
        {"offsets": torch.tensor([0, 64, 6400], dtype=torch.int32)},
        {"offsets": torch.tensor([0, -64, 64], dtype=torch.int32)},
        {"offsets": torch.tensor([0, 4, 64], dtype=torch.int32)},
        {"which": torch.tensor([0, 1, 3], dtype=torch.int32)},
        {"height": 4},
        {"stride_x": -1},
    ],
    ids=lambda changed: "-".join(changed),
)
def test_lists_of_a_layer_by_hand_are_held_to_its_tiles(changed: dict[str, Any]) -> None:
    build.load_kernels()
    tiles, values = torch.zeros(2, 1, 3, 3, LANES), torch.ones(3)
    given: dict[str, Any] = {
        "starts": torch.tensor([0, 1, 3], dtype=torch.int32), "offsets": torch.tensor([0, 64, 192], dtype=torch.int32),
        "which": torch.tensor([2, 0, 1], dtype=torch.int32), "channels": 2, "height": 2, "width": 2, "stride_y": 1,
        "stride_x": 1,
    }  # fmt: skip
    assert torch.ops.lthfunc.products(tiles, values, None, *given.values()).shape == (2, 2, 2, 2, LANES)
    with pytest.raises(ValueError, match="lthfunc: "):
        torch.ops.lthfunc.products(tiles, values, None, *(given | changed).values())
    if changed.keys() & {"starts", "offsets", "stride_x"}:
        given |= changed
        grad = torch.zeros(2, 2, 2, 2, LANES)
        with pytest.raises(ValueError, match="lthfunc: "):
            torch.ops.lthfunc.weight_gradients(tiles, grad, given["starts"], given["offsets"], 1, given["stride_x"])
