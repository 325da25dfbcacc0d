"""A running training: steps on an engine, prefetching ahead of them, checkpoints in between."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lthfunc.errors import UserError
from lthfunc.training.engines.interface import OnSurvivors, Running, Tick
from lthfunc.training.finiteness import are_finite, endless
from lthfunc.training.mask_updates import can_exchange
from lthfunc.training.packed_fits import AnyFit, unfinished_fits
from lthfunc.training.prefetch import Prefetcher
from lthfunc.training.results import Checkpointer, Deciding, Exchanged, Observers, SinceLastPoint, Stopped
from lthfunc.training.state_checks import check_pruned_zero, check_rates
from lthfunc.training.steps import with_optimizer
from lthfunc.training.trainer import Trainer, training_context
from lthfunc.trees.global_rng import seeded_state
from lthfunc.trees.packed_states import PackedState
from lthfunc.trees.rng import key
from lthfunc.trees.types import TrainState

#: States, and what each did since its last mark (empty at the mark itself).
Snapshot = tuple[list[TrainState], list[SinceLastPoint]]
#: The same on survivors.
PackedSnapshot = tuple[list[PackedState], list[SinceLastPoint]]


class TrainingSession:
    """States in training; a context manager, since a streamed prefetcher has a thread."""

    running: Running
    #: Gives the states at the last mark or change, and what each had done since its last mark.
    snapshot: Callable[[], Snapshot]
    _steps: list[int]
    _random: Tensor | None

    def __init__(
        self,
        trainer: Trainer,
        states: Sequence[TrainState],
        seeds: Sequence[int],
        end: int,
        *,
        since: Sequence[SinceLastPoint | None] = (),
        observe: Observers | None = None,
        checkpointer: Checkpointer[Any] | None = None,
    ) -> None:
        if len(states) > 1 and trainer.work.collectives.world_size > 1:
            raise UserError("ranks: several ranks train one state together, not several states")
        self.trainer, self._seeds, self._end = trainer, seeds, end
        self._observe, self.checkpointer = observe, checkpointer
        self._device = states[0].step.device
        self._prefetcher: Prefetcher | None = None
        self._endless = frozenset(name for state in states for name in endless(state))
        self.restart(states, since)

    def restart(
        self, states: Sequence[TrainState], since: Sequence[SinceLastPoint | None] = (), *, drawing: bool = False
    ) -> None:
        """Continue from these states. since: what they did since their last mark.

        drawing: whether this is called within `drawing`, whose random numbers then continue.
        """
        self.close()
        step = int(states[0].step)
        if step < 0:
            raise UserError(f"state.step: invalid value {step} (expected a step of at least 0)")
        trainer, data = self.trainer, self.trainer.data
        self._prefetcher = prefetcher = Prefetcher(
            data.train, trainer.batch_size, self._seeds, self._device, mapped=data.mapped,
            stream=data.stream, collectives=trainer.work.collectives,
        )  # fmt: skip
        ready = self._ready(states)
        with training_context(self.trainer):
            self.running = self.trainer.engine.begin(ready, self._seeds, prefetcher)
            self._continue(ready, since)
        if drawing:
            self._random = None

    def to(self, stop: int, fits: Sequence[AnyFit] = ()) -> None:
        """Train to step `stop`. fits: in which a checkpointer saves the states. Raises Stopped."""
        prefetcher, checkpointer = self._prefetcher, self.checkpointer
        assert prefetcher is not None
        with self.drawing():
            while self._step < stop:
                pause = stop if checkpointer is None else min(stop, checkpointer.next_check(self._step) or stop)
                steps = min(prefetcher.slots, pause - self._step)
                if checkpointer is not None:
                    checkpointer.on_phase("training", self._step)
                prefetcher.fill(self._step, self._step + steps, self._end)
                taken = self.running.take(steps, self._tick())
                self._step += taken
                self._steps = [count + taken for count in self._steps]
                if checkpointer is not None:
                    self._ask(checkpointer, fits)

    def one(self) -> None:
        """Take a single step; within `drawing`."""
        prefetcher = self._prefetcher
        assert prefetcher is not None
        prefetcher.fill(self._step, self._step + 1, self._step + 1)
        self.running.take(1, None)
        self._step += 1
        self._steps = [count + 1 for count in self._steps]

    def now(self) -> Snapshot:
        """The states, and what each did since the last mark; within `drawing`, if training is to continue from them."""
        states = self.running.states()
        check_pruned_zero(states, self.trainer.work)
        return states, self._since(_generator(self._device))

    def packed_now(self) -> PackedSnapshot | None:
        """The same on survivors, where the running loop keeps these alone; None elsewhere, and where something is not
        finite."""
        if not self._is_finite_on_survivors():
            return None
        return [each.packed() for each in self.on_survivors], self._since(_generator(self._device))

    def _since(self, random: Tensor) -> list[SinceLastPoint]:
        losses = zip(self.running.losses(), self._steps, strict=True)
        return [SinceLastPoint(loss, steps, random) for loss, steps in losses]

    def are_finite(self, now: Snapshot) -> list[bool]:
        """For each state, whether all its numbers and the losses on its way are finite.

        Buffers that held infinities when training began, such as a mask of attention, may go on to hold them.
        """
        return are_finite(*now, apart=self._endless)

    def mark(self, states: list[TrainState], since: list[SinceLastPoint]) -> list[float]:
        """Count anew from the current step; returns the mean losses up to here (NaN over no step).

        states: of now, or none where the running loop keeps survivors alone.
        """
        self.running.count_from([0.0] * len(since))
        self._steps = [0] * len(since)
        self._mark_snapshot(states, [])
        return [each.loss / each.steps if each.steps else math.nan for each in since]

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Seed torch's global generator, from which random layers (dropout) draw, and restore it after the block.

        It is left alone where nothing draws from it, so that such trainings can run in threads.
        """
        if not self.running.draws:
            with training_context(self.trainer):
                yield
            return
        devices = [self._device] if self._device.type == "cuda" else []
        with training_context(self.trainer), torch.random.fork_rng(devices=devices):
            if self._random is None:
                (torch.manual_seed if devices else torch.default_generator.manual_seed)(self._draw_key())
            else:
                _set_generator(self._device, self._random)
                self._random = None
            yield

    def change_to(self, states: Sequence[TrainState], since: Sequence[SinceLastPoint]) -> None:
        """Continue from other states at the current step, from which on random layers draw new numbers."""
        assert self._prefetcher is not None
        random = seeded_state(self._draw_key(), self._device)
        since, ready = [each._replace(random=random) for each in since], self._ready(states)
        with training_context(self.trainer):
            if self.trainer.engine.change(self.running, ready, self._prefetcher):
                self._continue(ready, since)
                return
        self.restart(ready, since)

    def _ready(self, states: Sequence[TrainState]) -> list[TrainState]:
        """The states with an optimiser. Raises UserError where steps would change nothing."""
        ready = [with_optimizer(state, self.trainer.work.optimizer) for state in states]
        check_rates(ready, self._end)
        return ready

    def _continue(self, ready: list[TrainState], since: Sequence[SinceLastPoint | None]) -> None:
        """Note where the running loop now stands."""
        known = [each for each in since if each is not None]
        self._step = int(ready[0].step)
        self._steps = [each.steps for each in known] or [0] * len(ready)
        self._random = known[0].random if known else None
        self.running.count_from([each.loss for each in known] or [0.0] * len(ready))
        self._mark_snapshot(ready, known)

    def _mark_snapshot(self, states: list[TrainState], since: list[SinceLastPoint]) -> None:
        """Let snapshots be of now, at these states, unless the running loop keeps them on survivors."""
        kept = [each.kept() for each in self.on_survivors]
        self.snapshot = (lambda: ([each() for each in kept], since)) if kept else lambda: (states, since)

    @property
    def on_survivors(self) -> Sequence[OnSurvivors]:
        """The networks of the running loop, if it keeps survivors alone."""
        return self.trainer.engine.on_survivors(self.running)

    def exchange(self, decide: Deciding) -> list[Exchanged] | None:
        """Change masks on the survivors that the running loop keeps, and continue as `change_to` does.

        Returns what each state's masks are now; None, with nothing done, where the loop keeps no survivors alone, where
        something is not finite, where scores are not float32, where a share is out of range, and where masks don't fit.
        """
        networks = self.on_survivors
        if not self._is_finite_on_survivors():
            return None
        given = [decide(network.network, seed) for network, seed in zip(networks, self._seeds, strict=True)]
        if not all(can_exchange(each, network.shapes) for each, network in zip(given, networks, strict=True)):
            return None
        with training_context(self.trainer):
            found = [network.exchange(each) for network, each in zip(networks, given, strict=True)]
        self._mark_snapshot([], self._since(seeded_state(self._draw_key(), self._device)))
        return found

    def _is_finite_on_survivors(self) -> bool:
        """Whether the running loop keeps survivors alone, and all numbers and losses are finite."""
        networks = self.on_survivors
        finite = all(map(math.isfinite, self.running.losses())) if networks else False
        return finite and all(each.is_finite() for each in networks)

    def close(self) -> None:
        """End the thread of a streamed prefetcher."""
        if self._prefetcher is not None:
            self._prefetcher.close()

    def asked(self, checkpointer: Checkpointer[Any]) -> bool:
        """Whether to stop; all ranks stop once one of them is asked to."""
        stopping, collectives = checkpointer.should_stop(), self.trainer.work.collectives
        if collectives.world_size == 1:
            return stopping
        return bool(collectives.all_reduce(torch.tensor([int(stopping)], device=self._device)))

    def _draw_key(self) -> int:
        """Of the numbers that random layers draw from the current step on."""
        rank = self.trainer.work.collectives.rank  # each draws for its part of a batch
        return key(self._seeds[0], "layers", self._step, *([rank] if rank else []))

    def _ask(self, checkpointer: Checkpointer[Any], fits: Sequence[AnyFit]) -> None:
        stopping = self.asked(checkpointer)
        if stopping or checkpointer.due(self._step):
            packed = self.packed_now() if checkpointer.packed else None
            now = self.now() if packed is None else None
            if packed is not None:
                checkpointer.save(unfinished_fits(fits, *packed))
            elif now is not None and all(self.are_finite(now)):
                checkpointer.save(unfinished_fits(fits, *now))
        if stopping:
            raise Stopped

    def _tick(self) -> Tick | None:
        observe, checkpointer, step = self._observe, self.checkpointer, self._step
        if observe is None and checkpointer is None:
            return None

        def tick(steps: int) -> bool:
            nonlocal step
            step += steps
            if observe is not None:
                observe(step, None)
            # Several ranks stop after the same step, on which they agree from time to time.
            alone = self.trainer.work.collectives.world_size == 1
            return alone and checkpointer is not None and checkpointer.should_stop()

        return tick

    def __enter__(self) -> TrainingSession:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _generator(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_generator(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
