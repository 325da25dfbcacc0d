"""What the cases of GPU kernels share. Cases (`cases_*.py`) run on a card, or where TRITON_INTERPRET=1 is set on a CPU:
test_gpu_kernels.py runs them so in processes of their own, test_gpu_kernels_on_card.py on a card."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: Where kernels run.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
#: How far a result may be from float64's, by what it is computed in: of itself, and of a number near 1. Triton's
#: interpreter cuts bfloat16 off where a card rounds.
NEAR = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}


def drawn(seed: int) -> torch.Generator:
    """Numbers of a case's own."""
    return torch.Generator().manual_seed(seed)


def normal(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Drawn on the CPU, so that they are the same everywhere."""
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype)


def masks(generator: torch.Generator, *shape: int, density: float) -> Tensor:
    """Random masks whose last network of several, or whose last row, has nothing left."""
    mask = torch.rand(*shape, generator=generator) < density
    (mask[0] if len(mask) == 1 else mask)[-1] = False
    return mask.to(DEVICE)


def assert_near(found: Tensor, wanted: Tensor, dtype: torch.dtype, **tolerance: Any) -> None:
    """Hold a result to float64's."""
    near = NEAR[dtype]
    torch.testing.assert_close(found.double(), wanted, **{"rtol": near, "atol": near, **tolerance})


def wide(tensor: Tensor) -> Tensor:
    """A copy in float64 that gradients flow to."""
    return tensor.detach().double().requires_grad_()
