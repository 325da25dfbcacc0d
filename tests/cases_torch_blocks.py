"""torch's own kernel of blocks, which `specialize --format block` uses on a GPU, in Triton's interpreter."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from kernel_cases import DEVICE

from lthfunc.deployment.formats import block_sizes, in_whole_blocks


@pytest.mark.skipif(DEVICE != "cpu", reason="test_gpu.py runs it on a card")
def test_torchs_kernel_takes_every_block_on_any_number_of_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would refuse parts of blocks, if it were not given whole ones."""
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: True)  # a CPU has none, says torch
    ops: Any = importlib.reload(importlib.import_module("torch.sparse._triton_ops"))
    if not hasattr(ops, "_get_device_name"):
        pytest.skip(f"torch {torch.__version__} asks a card for its properties, and there is none")
    kernel = ops._bsr_strided_addmm_kernel

    class Launched:
        def __getitem__(self, grid: Any) -> Any:
            return kernel[tuple(grid)]

    for name in ("_get_device_name", "get_meta"):
        monkeypatch.setattr(ops, name, lambda *given, **named: None)
    monkeypatch.setattr(ops, "_bsr_strided_addmm_kernel", Launched())
    torch.manual_seed(0)
    sizes = block_sizes(torch.device("cuda"))
    assert sizes == (64, 32, 16)
    for size in sizes:
        weight = torch.randn(2 * size, 2 * size).half()
        weight[:size, :size] = 0
        for examples in (1, 7, 48, 100):
            x = torch.randn(examples, 2 * size).half()
            rows = in_whole_blocks(x, size).T.contiguous()
            found = ops.bsr_dense_mm(weight.to_sparse_bsr((size, size)), rows, skip_checks=True).T[:examples]
            wanted = (x.double() @ weight.double().T).half()
            torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-2)
