"""The sparse engine: steps on survivors alone, in one call of the machine for many steps."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from lthfunc.errors import UserError, invalid
from lthfunc.sparse.capture import captured
from lthfunc.sparse.cost_model import check_mode
from lthfunc.sparse.evaluator import Evaluator
from lthfunc.sparse.exchange import by_growth, exchanged, masks_of
from lthfunc.sparse.growth_gradients import GrowthGradients
from lthfunc.sparse.kernels.build import why_no_kernels
from lthfunc.sparse.machine_state import load_optimizer, optimizer_after
from lthfunc.sparse.new_masks import exchanged_for
from lthfunc.sparse.program import Epilogue, Lowered, Program, Stored, builder_for, lower
from lthfunc.sparse.python_losses import check_features, computes_loss
from lthfunc.sparse.python_steps import PythonSteps
from lthfunc.sparse.thread_tuner import ThreadTuners
from lthfunc.sparse.updates import machine_numbers
from lthfunc.sparse.workspace import Workspace
from lthfunc.training.accumulation import parts_of_batch
from lthfunc.training.engines.interface import Engine, Network, OnSurvivors, Running, Tick, Work
from lthfunc.training.evaluation import Evaluation
from lthfunc.training.prefetch import Prefetcher
from lthfunc.training.results import DropAndGrow, Exchanged, GradientGrowth
from lthfunc.trees.ops import map_leaves_like
from lthfunc.trees.rng import key
from lthfunc.trees.types import Batch, Masks, NewMasks, Split, TrainState

#: Seconds that one call of the machine should take: long enough to cost nothing, short enough to be interrupted.
_CALL_SECONDS = 0.1


def sparse_engine(work: Work) -> Engine:
    """Steps and evaluations on the surviving weights alone, on a CPU.

    A trainer takes it as its engine and calls it. work: the network, loss, optimiser and so on that the trainer runs.
    The kernels are built before its first step, where they were not yet. Raises UserError where there is no compiler
    for that, for tf32, for a device other than the CPU, and for a network with an operation that
    has no lowering, which it names.

    >>> import lthfunc as lf
    >>> data = lf.data.from_tensors("tiny", (torch.randn(9, 4), [0, 1, 1] * 3), (torch.randn(2, 4), [0, 1]), val=3)
    >>> model = lf.from_module(torch.nn.Linear(4, 2))
    >>> lf.make_trainer(model, data, optimizer=lf.adam(1e-3), batch_size=2, engine=lf.sparse_engine).engine.name
    'sparse'
    """
    if work.precision == "tf32":
        raise invalid("--precision", work.precision, "fp32 or bf16 with --engine sparse")
    if work.collectives.world_size > 1:
        raise invalid("--engine", "sparse", "eager or compile on several ranks")
    check_features(work)
    reason = why_no_kernels()
    if reason is not None:
        raise UserError(reason)
    programs, gradients, tuners = _Programs(work), GrowthGradients(work), ThreadTuners()
    evaluable: set[Stored] = set()

    def begin(states: Sequence[TrainState], seeds: Sequence[int], prefetcher: Prefetcher) -> Running:
        if states[0].step.device.type != "cpu":
            raise invalid("--device", states[0].step.device, "cpu with --engine sparse")
        x, y = prefetcher.slotted
        loops = []
        for number, (state, seed) in enumerate(zip(states, seeds, strict=True)):
            slots = (x, y) if len(states) == 1 else (x[:, number], y[:, number])
            loops.append(_Loop(work, programs, gradients, tuners, state, seed, slots))
        # A network that cannot be evaluated is refused before it is trained: each mode has its own graph.
        stored = Stored(tuple(x.shape[2 if len(states) == 1 else 3 :]), x.dtype, work.scale)
        if stored not in evaluable:
            check_mode(work, stored, training=False)
            evaluable.add(stored)
        return loops[0] if len(loops) == 1 else _Several(loops)

    def change(running: Running, states: Sequence[TrainState], prefetcher: Prefetcher) -> bool:
        loops = _loops_of(running)
        if not loops:
            return False
        for loop, state in zip(loops, states, strict=True):
            loop.change_to(state)
        return True

    evaluator = Evaluator(work, tuners)

    def measure(networks: Sequence[Network], split: Split) -> list[Evaluation]:
        return [evaluator.quality(network, split) for network in networks]

    def on_survivors(running: Running) -> Sequence[OnSurvivors]:
        return [loop for loop in _loops_of(running) if loop.updates_alone]

    return Engine("sparse", begin, measure, change=change, on_survivors=on_survivors)


def _loops_of(running: Running) -> Sequence[_Loop]:
    """The loops of this engine within one that runs; none of another engine's, which `sparse_or` may have chosen."""
    if isinstance(running, _Several):
        return running.loops
    return [running] if isinstance(running, _Loop) else []


def takes_whole_steps(work: Work) -> bool:
    """Whether the machine takes all of a step: no part of it is Python's, and it draws its own random numbers."""
    return work.augment is None and computes_loss(work) and machine_numbers(work.optimizer) is not None


class _Programs(threading.local):
    """Makes a training's program; keeps the last, since controls and continued trainings have the same masks.

    Each thread's own, as is `_Measuring`.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._last: tuple[Lowered, object] | None = None

    def program(
        self, state: TrainState, batch: int, stored: Stored, positions: Mapping[str, Tensor] | None = None
    ) -> Program:
        """For networks under this state's masks. positions: where their survivors lie, if that is known."""
        work, last = self._work, self._last
        if last is not None and last[1] == (batch, stored) and last[0].program.fits(state.buffers):
            lowered = last[0]
            if lowered.move_to(lowered.program.positions_under(state.masks) if positions is None else positions):
                return lowered.program
        loss, update = "cross_entropy" if computes_loss(work) else None, machine_numbers(work.optimizer)
        lowered = lower(
            captured(work.model, stored.shape, training=True), state.params, state.buffers, state.masks, batch=batch,
            stored=stored, epilogue=Epilogue(loss, True, update or ()), positions=positions,
            builder=builder_for(work.precision),
        )  # fmt: skip
        self._last = lowered, (batch, stored)
        return lowered.program


class _Loop:
    """One network in training."""

    def __init__(
        self,
        work: Work,
        programs: _Programs,
        gradients: GrowthGradients,
        tuners: ThreadTuners,
        state: TrainState,
        seed: int,
        slots: Batch,
    ) -> None:
        self._gradients = gradients
        self._work, self._programs, self._slots, self._seed = work, programs, slots, seed
        self._draw, self._parts = key(seed, "dropout") % 2**32, parts_of_batch(work.optimizer)
        x, _ = slots
        self._batch, shape = x.shape[1] // self._parts, tuple(x.shape[2:])
        # Augmented inputs come scaled.
        self._stored = Stored(shape, x.dtype, work.scale) if work.augment is None else Stored(shape, torch.float32)
        self._numbers = machine_numbers(work.optimizer)
        self._whole = takes_whole_steps(work)
        self.draws = not self._whole
        self._steps_a_call = 1.0
        # Python's share of a step may depend on the number of threads, the machine's does not.
        self._tuner = tuners.of(torch.get_num_threads() if self._whole else 1)
        self.change_to(state)

    def change_to(self, state: TrainState) -> None:
        """Go on from a state of this network, whatever its masks."""
        self._step, self._taken = int(state.step), 0
        program = self._programs.program(state, self._batch, self._stored)
        workspace = Workspace(program, state.params, state.buffers)
        if self._numbers is not None:
            load_optimizer(workspace, self._numbers, state.opt)
            # The machine has the moments; dense ones would take memory beside them for as long as the training runs.
            state = state._replace(opt=map_leaves_like(state.params, state.opt, lambda moments: {}))
        self._take_up(workspace, state)

    def _take_up(self, workspace: Workspace, state: TrainState) -> None:
        self._workspace, self._state = workspace, state
        if not self._whole:
            updates = self._numbers is None
            self._python = PythonSteps(self._work, workspace, state, self._seed, self._draw, updates=updates)

    @property
    def updates_alone(self) -> bool:
        """Whether the machine has all of the optimiser's state, and a list of what survives in each pruned leaf."""
        return self._numbers is not None and self._state.masks.keys() <= self._workspace.program.positions.keys()

    def is_finite(self) -> bool:
        """Whether all numbers are."""
        return self._workspace.is_finite()

    def network(self) -> TrainState:
        """The dense state without that of the optimiser."""
        return self._bare(self._workspace, self._state, self._step, self._taken)

    @property
    def masks(self) -> Masks:
        """Of the network as it is now."""
        return self._state.masks

    def exchange(self, decided: DropAndGrow | NewMasks) -> Exchanged:
        """Go on after `drop_and_grow`, or under other masks."""
        if isinstance(decided, NewMasks):
            found = exchanged_for(self._workspace, self._state.masks, decided)
        else:
            growth, drop_fraction = decided
            if isinstance(growth, GradientGrowth):
                draw = self._step, self._seed
                grow = self._gradients.growing(self._workspace, growth, self._stored, draw, self._state.masks)
            else:
                grow = by_growth(growth, {name: mask.numel() for name, mask in self._state.masks.items()})
            found = exchanged(self._workspace, self._state.masks, grow, drop_fraction)
        state = self._state._replace(masks=masks_of(found.positions, self._state.masks))
        program = self._programs.program(state, self._batch, self._stored, found.positions)
        self._take_up(self._workspace.moved(program, found.sources), state)
        return state.masks, found.layers

    def kept(self) -> Callable[[], TrainState]:
        """The public state of now, which can be asked for later."""
        return partial(self._public, self._workspace.still(), self._state, self._step, self._taken)

    def take(self, steps: int, tick: Tick | None) -> int:
        """Take one step on each of the slots 0 … steps-1, or on fewer if `tick` stops it; returns how many."""
        done = 0
        x, y = self._slots
        while done < steps:
            count = self._tuner.at_most(min(steps - done, int(self._steps_a_call))) if self._whole else 1
            begun, had = time.perf_counter(), self._tuner.processor_time()
            if self._whole:
                with self._tuner.running():
                    self._workspace.run(x[done:], y[done:], count, self._step, self._draw, parts=self._parts)
            else:
                self._python.take(x[done], y[done], self._step)
            # How many steps a call takes, and how many threads it has, changes nothing in their results.
            seconds = max(1e-6, time.perf_counter() - begun)
            self._tuner.took(count, seconds, self._tuner.processor_time() - had)
            self._steps_a_call = max(1.0, min(2 * self._steps_a_call, count / seconds * _CALL_SECONDS))
            done += count
            self._step += count
            self._taken += count
            if tick is not None and tick(count):
                break
        return done

    def losses(self) -> list[float]:
        """The sum of the steps' losses."""
        return [float(self._workspace.totals[0]) / self._parts]

    def count_from(self, losses: Sequence[float]) -> None:
        """Let the sum of losses go on from here."""
        self._workspace.totals.zero_()
        self._workspace.totals[0] = losses[0] * self._parts

    def states(self) -> list[TrainState]:
        """The public state: dense leaves, zeros where weights were pruned."""
        return [self._public(self._workspace, self._state, self._step, self._taken)]

    def _public(self, workspace: Workspace, state: TrainState, step: int, taken: int) -> TrainState:
        bare = self._bare(workspace, state, step, taken)
        if self._numbers is None:
            return bare._replace(opt=self._python.opt())
        return bare._replace(opt=optimizer_after(workspace, self._numbers, state.opt, bare.buffers, taken))

    def _bare(self, workspace: Workspace, state: TrainState, step: int, taken: int) -> TrainState:
        buffers, number = workspace.buffers(state.buffers, taken * self._parts), torch.full_like(state.step, step)
        return TrainState(workspace.dense(workspace.values), buffers, state.masks, (), number)


class _Several:
    """Networks in turn, one after the other: on a CPU nothing is gained by mixing them."""

    def __init__(self, loops: Sequence[_Loop]) -> None:
        self.loops = loops
        self.draws = loops[0].draws

    def take(self, steps: int, tick: Tick | None) -> int:
        """Take one step of each network on each of the slots 0 … steps-1, or on as many as the first takes."""
        first, *others = self.loops
        taken = first.take(steps, tick)
        for loop in others:
            loop.take(taken, None)
        return taken

    def losses(self) -> list[float]:
        """The sum of each network's losses."""
        return [loss for loop in self.loops for loss in loop.losses()]

    def count_from(self, losses: Sequence[float]) -> None:
        """Let the sums of losses go on from here."""
        for loop, loss in zip(self.loops, losses, strict=True):
            loop.count_from([loss])

    def states(self) -> list[TrainState]:
        """The public states."""
        return [state for loop in self.loops for state in loop.states()]
