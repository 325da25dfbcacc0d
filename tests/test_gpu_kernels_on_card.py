"""On a card: the cases that Triton's interpreter runs without one, by the kernels themselves."""

from __future__ import annotations

import importlib

import pytest

pytest.importorskip("triton")
CASES = ("cases_block_linear", "cases_masked_adam", "cases_masked_linear", "cases_resident")
pytest.register_assert_rewrite(*CASES)
for file in CASES:
    found = vars(importlib.import_module(file))
    globals().update({name: case for name, case in found.items() if name.startswith("test_")})

pytestmark = pytest.mark.gpu
