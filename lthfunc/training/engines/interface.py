"""What an engine is: it makes states ready, takes steps on them, and gives public states back."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch

from lthfunc.training.evaluation import Evaluation, chunk_for, chunk_on_gpu
from lthfunc.training.prefetch import Prefetcher
from lthfunc.training.results import Decided, Exchanged
from lthfunc.training.steps import Work as Work
from lthfunc.trees.flops import flops_of
from lthfunc.trees.model import Model
from lthfunc.trees.packed_states import PackedState
from lthfunc.trees.types import Buffers, Params, Split, TrainState

#: Told how many steps were taken since the last time; True asks to stop.
Tick = Callable[[int], bool]


def chunk_of(work: Work, networks: int, split: Split, device: torch.device) -> int:
    """Examples of a split to measure at a time, with `networks` vmapped networks."""
    if device.type != "cuda":
        return chunk_for(networks)
    examples = -(-len(split.x) // work.collectives.world_size)
    return chunk_on_gpu(networks, _flops(work.model, tuple(split.x.shape[1:])), examples)


@functools.lru_cache(maxsize=8)
def _flops(model: Model, shape: tuple[int, ...]) -> int:
    """Of one example; none known of a module that does not run on zeros alone."""
    try:
        return flops_of(model.evaluating, shape, tokens=model.tokens)
    except Exception:
        return 0


class Network(Protocol):
    """What is evaluated: a state, a ticket, or the best network of a fit; or a `PackedState`, by the engine whose loop
    gave it."""

    @property
    def params(self) -> Params:
        """On the device on which it is evaluated."""

    @property
    def buffers(self) -> Buffers:
        """Of the module."""


def device_of(params: Params) -> torch.device:
    """The device of a network."""
    return next(iter(params.values())).device


class Running(Protocol):
    """A loop under way: private, and changed in place where that is faster. Nobody else sees its memory.

    draws: whether its steps may draw from torch's global generator.
    """

    draws: bool

    def take(self, steps: int, tick: Tick | None) -> int:
        """Take one step on each of the slots 0 … steps-1, or on fewer if `tick` stops it; returns how many."""

    def losses(self) -> list[float]:
        """Sums of each state's training losses over the steps taken."""

    def count_from(self, losses: Sequence[float]) -> None:
        """Let the sums of losses go on from these."""

    def states(self) -> list[TrainState]:
        """The public states: memory of their own, bool masks, the layout that `init` gives."""


class OnSurvivors(Protocol):
    """A network of a loop under way, of which the loop keeps the surviving weights alone."""

    @property
    def shapes(self) -> Mapping[str, torch.Size]:
        """Of its masks."""

    def packed(self) -> PackedState:
        """The public state of now on its survivors, in memory of its own."""

    def is_finite(self) -> bool:
        """Whether all its numbers are finite."""

    def network(self) -> TrainState:
        """The dense state without that of the optimiser."""

    def exchange(self, found: Decided) -> Exchanged:
        """Go on after `drop_and_grow` (scores are float32), under other masks, or pruned. Returns the masks, and what
        changed."""

    def kept(self) -> Callable[[], TrainState]:
        """The public state of now, which can be asked for later."""


class Engine(NamedTuple):
    """A way to run the pure step. Add another in a file of its own and a line in `table.py`.

    begin: (states with an optimiser, their seeds, prefetcher) -> a running loop; the states are left as they are.
    measure: (networks, split) -> the quality of each. Several states run side by side as one vmapped program. forget:
    gives up memory that is kept for the next training. change: (a running loop, other states of its networks at its
    step, its prefetcher) -> whether the loop goes on from them; if not, another one has to be begun. on_survivors: a
    running loop -> its networks, if it keeps survivors alone; nothing otherwise.
    """

    name: str
    begin: Callable[[Sequence[TrainState], Sequence[int], Prefetcher], Running]
    measure: Callable[[Sequence[Network], Split], list[Evaluation]]
    forget: Callable[[], None] = lambda: None
    change: Callable[[Running, Sequence[TrainState], Prefetcher], bool] = lambda running, states, prefetcher: False
    on_survivors: Callable[[Running], Sequence[OnSurvivors]] = lambda running: ()
