"""What streamed training examples are: batches that are read while they are needed."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Protocol

from torch import Tensor


class Stream(Protocol):
    """Training examples in an order of their own, which depends on the seed and the epoch alone.

    examples: of an epoch.
    """

    examples: int

    def batches(
        self, batch_size: int, seeds: Sequence[int], start: int
    ) -> Generator[list[tuple[Tensor, Tensor]], None, None]:
        """The batches of the steps from `start` on without end: for each step one, as stored, for each of the seeds.

        Closing the generator ends its processes. Raises UserError where examples cannot be read.
        """
