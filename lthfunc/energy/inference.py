"""Energy of inference: programs in turn over the same examples, each repeat read on its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from lthfunc.deployment.timing import synchronize
from lthfunc.energy.amounts import Amount
from lthfunc.energy.meter import Meter
from lthfunc.trees.ops import scaled
from lthfunc.trees.types import Dataset

#: Examples that lie ready; a million of them are these again and again.
_READY = 20_000


def ready_batches(data: Dataset, batch: int, device: str) -> list[Tensor]:
    """Whole batches of the test set on the device, as the network takes them: reading them is not inference."""
    x = data.test.x[: max(batch, _READY - _READY % batch)]
    whole = x[: len(x) - len(x) % batch] if len(x) >= batch else x
    return [scaled(part.to(device), data.scale) for part in torch.split(whole, batch)]


def metered_inference(
    programs: Mapping[str, Callable[[Tensor], Tensor]],
    batches: Sequence[Tensor],
    samples: int,
    repeats: int,
    meter: Meter,
) -> Iterator[tuple[str, Amount]]:
    """(a program's name, what one example cost it) for each of the repeats, programs in turn.

    samples: that each program runs through, over all repeats; at least one batch in each.
    """
    device = str(batches[0].device)
    calls = max(1, -(-samples // (repeats * len(batches[0]))))
    with torch.no_grad():
        for program in programs.values():
            program(batches[0])  # made ready
        for _ in range(repeats):
            for name, program in programs.items():
                synchronize(device)
                meter.lap()
                for call in range(calls):
                    program(batches[call % len(batches)])
                synchronize(device)
                yield name, meter.lap().over(calls * len(batches[0]))
