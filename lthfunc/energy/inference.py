"""Energy of inference: programs in turn on the same examples, each repeat metered separately."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from lthfunc.deployment.timing import synchronize
from lthfunc.energy.amounts import Amount
from lthfunc.energy.meter import Meter
from lthfunc.trees.ops import scaled
from lthfunc.trees.types import Dataset

#: Examples that are held on the device; larger numbers repeat them.
_READY = 20_000


def ready_batches(data: Dataset, batch: int, device: str) -> list[Tensor]:
    """Whole batches of the test set on the device, as the network takes them, so that loading isn't metered."""
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
    """Yield (a program's name, its cost per example) for each repeat, programs in turn.

    samples: examples that each program processes over all repeats; at least one batch per repeat.
    """
    device = str(batches[0].device)
    calls = max(1, -(-samples // (repeats * len(batches[0]))))
    with torch.no_grad():
        for program in programs.values():
            program(batches[0])  # compiles
        for _ in range(repeats):
            for name, program in programs.items():
                synchronize(device)
                meter.lap()
                for call in range(calls):
                    program(batches[call % len(batches)])
                synchronize(device)
                yield name, meter.lap().over(calls * len(batches[0]))
