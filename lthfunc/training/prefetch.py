"""Batches are gathered some steps ahead, into memory that stays where it is.

Gathering 60 images from all over a data set in every step waits for main memory; gathered for many steps at a time,
they are in a cache when their step comes, and a compiled step (or a captured CUDA graph) finds its inputs at fixed
addresses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from lthfunc.distributed.collectives import SINGLE_RANK, Collectives
from lthfunc.distributed.data_parallel import rank_batch_size
from lthfunc.training.batches import BatchOrder
from lthfunc.trees.streams import Stream
from lthfunc.trees.types import Batch, Split

#: Bytes of inputs gathered at a time: they should stay in a CPU's last cache; a GPU has room, and fewer launches
#: to gain.
_BYTES = {"cpu": 4 * 2**20, "cuda": 256 * 2**20}
_MOST = 64
#: The alignment of PyTorch's own memory, in bytes.
_ALIGNED = 64


class Prefetcher:
    """Slots for the batches of the next steps: `fill` them, then read slot 0, 1, … of `batches`.

    With several seeds a batch has one more dimension in front, (seeds, batch size, ...). A split that is mapped from a
    file, or lies on another device than the training, is read ahead: a thread gathers the next steps while the current
    ones run. stream: what reads the batches, of which the split holds examples alone. collectives: of several ranks,
    each of which gets its part of every batch.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        seeds: Sequence[int],
        device: torch.device,
        *,
        mapped: bool = False,
        stream: Stream | None = None,
        collectives: Collectives = SINGLE_RANK,
    ) -> None:
        self._split, self._device = split, device
        part = rank_batch_size(batch_size, collectives)
        self._mine = slice(collectives.rank * part, (collectives.rank + 1) * part)
        self._source = None if stream is None else (stream, batch_size, seeds)
        self._reading: _Reading | None = None
        self._orders = [BatchOrder(len(split.x), batch_size, seed) for seed in seeds if stream is None]
        lead = (part,) if len(seeds) == 1 else (len(seeds), part)
        size = split.x[:1].nbytes * part * len(seeds)
        self.slots = max(1, min(_MOST, _BYTES.get(device.type, _BYTES["cpu"]) // max(1, size)))
        #: The shapes and dtypes of the slots, of inputs and of targets.
        self.kinds = tuple(((self.slots, *lead, *part.shape[1:]), part.dtype) for part in split)
        self._room: Batch | None = None
        self._streamed = mapped or split.x.device.type != device.type
        self._stream: _Stream | None = None
        self._index = torch.empty(self.slots * part * len(seeds), dtype=torch.int64, device=device)
        self._staging = _Staging([self._index]) if device.type == "cuda" and not self._streamed else None
        self._afterwards: list[Callable[[], None]] = []
        self._next = 0  # the step whose batch a stream gives next

    @property
    def slotted(self) -> Batch:
        """All slots at once: inputs and targets with one more dimension in front, the slots."""
        if self._room is None:
            x, y = (_slots(shape[0], shape[1:], dtype, self._device) for shape, dtype in self.kinds)
            self._room = x, y
        return self._room

    @property
    def batches(self) -> list[Batch]:
        """The slots one by one."""
        return list(zip(*self.slotted, strict=True))

    def use(self, slotted: Batch) -> None:
        """Reuse the slots of a closed prefetcher with the same `kinds`; only before this one's slots have been used."""
        assert self._room is None
        self._room = slotted

    def at_end(self, call: Callable[[], None]) -> None:
        """Call this when the prefetcher is closed and nobody uses its slots any more."""
        self._afterwards.append(call)

    def fill(self, start: int, stop: int, end: int) -> None:
        """Put the batches of steps start … stop-1 into the first slots; steps up to `end` will follow."""
        if self._source is not None:
            self._read(start, stop)
            return
        if self._streamed:
            if self._stream is None:
                self._stream = _Stream(self._split, *self.slotted)
            if self._stream.ready is None:  # the first steps were not ordered ahead
                self._stream.order(self._indices(start, stop))
            self._stream.deliver(stop - start)
            if stop < end:
                self._stream.order(self._indices(stop, min(stop + self.slots, end)))
            return
        index = self._indices(start, stop)
        if self._staging is None:
            index = index.to(self._device)
        else:
            self._staging.free()[0][: len(index)].copy_(index)
            self._staging.send(len(index))
            index = self._index[: len(index)]
        for part, slots in zip(self._split, self.slotted, strict=True):
            room = slots[: stop - start]
            if room.is_contiguous():
                torch.index_select(part, 0, index, out=room.view(-1, *part.shape[1:]))
            else:
                room.copy_(torch.index_select(part, 0, index).view(room.shape))

    def close(self) -> None:
        """End the thread or the processes that read ahead."""
        if self._stream is not None:
            self._stream.close()
        if self._reading is not None:
            self._reading.batches.close()
        while self._afterwards:
            self._afterwards.pop()()

    def _read(self, start: int, stop: int) -> None:
        """Read the batches of some steps, which their stream gives one after the other."""
        assert self._source is not None
        stream, batch_size, seeds = self._source
        if self._reading is None or self._next != start:  # a loop that was asked to stop within a tick, say
            if self._reading is not None:
                self._reading.batches.close()
            self._reading = _Reading(stream.batches(batch_size, seeds, start), _Staging([*self.slotted]))
        self._next = stop
        rooms = self._reading.staging.free()
        for slot in range(stop - start):
            for number, batch in enumerate(next(self._reading.batches)):
                for part, room in zip(batch, rooms, strict=True):
                    (room[slot] if len(seeds) == 1 else room[slot, number]).copy_(part[self._mine])
        self._reading.staging.send(stop - start)

    def _indices(self, start: int, stop: int) -> Tensor:
        return torch.stack([order.rows(start, stop)[:, self._mine] for order in self._orders], dim=1).flatten()


class _Reading(NamedTuple):
    """A stream that is being read, and the memory into which it is."""

    batches: Generator[list[Batch], None, None]
    staging: _Staging


def _slots(count: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory for `count` batches, each of which begins at an aligned address.

    Sums of products have other bits at other alignments, and the slot of a step's batch depends on where training began
    or resumed.
    """
    size = math.prod(shape)
    step = -(-size * dtype.itemsize // _ALIGNED) * _ALIGNED // dtype.itemsize
    strides = torch.empty(shape, device="meta").stride()
    return torch.empty(count * step, dtype=dtype, device=device).as_strided((count, *shape), (step, *strides))


class _Staging:
    """Host memory as large as some device memory: what is written there is sent over.

    For a GPU it is pinned and exists twice, so that neither host nor device waits for a copy: one is written while the
    other may still be read.
    """

    def __init__(self, targets: Sequence[Tensor]) -> None:
        self._targets = targets
        self._device = targets[0].device
        gpu = self._device.type == "cuda"
        self._rooms = [
            [torch.empty(each.shape, dtype=each.dtype, pin_memory=gpu) for each in targets] for _ in range(1 + gpu)
        ]
        self._read = [torch.cuda.Event() for _ in self._rooms] if gpu else []
        self._turn = 0

    def free(self) -> list[Tensor]:
        """Memory to write into, once its last copy has ended."""
        if self._read:
            self._read[self._turn].synchronize()
        return self._rooms[self._turn]

    def send(self, rows: int) -> None:
        """Copy the first rows of what was written, in stream order."""
        for staged, target in zip(self._rooms[self._turn], self._targets, strict=True):
            target[:rows].copy_(staged[:rows], non_blocking=True)
        if self._read:
            # On the targets' device: the current one may be another, whose stream doesn't wait for the copy.
            self._read[self._turn].record(torch.cuda.current_stream(self._device))
        self._turn = (self._turn + 1) % len(self._rooms)


class _Stream:
    """Gathers rows in a thread of its own, into staging memory."""

    def __init__(self, split: Split, x: Tensor, y: Tensor) -> None:
        self._split = split
        self._staging = _Staging([x, y])
        self._thread = ThreadPoolExecutor(1, "lthfunc-feed")
        self.ready: Future[None] | None = None

    def order(self, index: Tensor) -> None:
        """Start to gather these rows."""
        self.ready = self._thread.submit(self._gather, index)

    def deliver(self, steps: int) -> None:
        """Put the ordered rows, or the first of them, into the slots of `steps` steps."""
        assert self.ready is not None
        self.ready.result()
        self.ready = None
        self._staging.send(steps)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(cancel_futures=True)

    def _gather(self, index: Tensor) -> None:
        for part, staged in zip(self._split, self._staging.free(), strict=True):
            flat = staged.view(-1, *part.shape[1:])[: len(index)]
            torch.index_select(part, 0, index, out=flat)
