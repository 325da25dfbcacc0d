"""On a card: the cases that Triton's interpreter runs without one, by the kernels themselves."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from cases_block_linear import *  # noqa: F403
from cases_masked_adam import *  # noqa: F403
from cases_masked_linear import *  # noqa: F403
from cases_resident import *  # noqa: F403

pytestmark = pytest.mark.gpu
