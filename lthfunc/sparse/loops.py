"""Networks in training on the sparse engine, each of which the machine keeps on its survivors."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from lthfunc.sparse.exchange import by_growth, exchanged
from lthfunc.sparse.growth_gradients import GrowthGradients
from lthfunc.sparse.machine_state import load_optimizer, optimizer_after
from lthfunc.sparse.new_masks import exchanged_for, pruned_survivors
from lthfunc.sparse.program import Stored
from lthfunc.sparse.python_losses import computes_loss
from lthfunc.sparse.python_steps import PythonSteps
from lthfunc.sparse.thread_tuner import ThreadTuners
from lthfunc.sparse.training_programs import Programs
from lthfunc.sparse.updates import machine_numbers
from lthfunc.sparse.workspace import Workspace
from lthfunc.training.accumulation import parts_of_batch
from lthfunc.training.engines.interface import Tick, Work
from lthfunc.training.results import Decided, Exchanged, GradientGrowth
from lthfunc.trees.ops import map_leaves_like
from lthfunc.trees.packed_states import PackedState
from lthfunc.trees.packed_trees import mask_on
from lthfunc.trees.packing import masks_of
from lthfunc.trees.rng import key
from lthfunc.trees.types import Batch, Masks, NewMasks, Params, SurvivorPruning, TrainState

#: Seconds that one call of the machine should take: long enough to cost nothing, short enough to be interrupted.
_CALL_SECONDS = 0.1


def takes_whole_steps(work: Work) -> bool:
    """Whether the machine takes all of a step: no part of it is Python's, and it draws its own random numbers."""
    return work.augment is None and computes_loss(work) and machine_numbers(work.optimizer) is not None


class Loop:
    """One network in training."""

    def __init__(
        self,
        work: Work,
        programs: Programs,
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
        self._shapes = {name: mask.shape for name, mask in state.masks.items()}
        program = self._programs.program(state, self._batch, self._stored)
        workspace = Workspace(program, state.params, state.buffers)
        if self._numbers is not None:
            load_optimizer(workspace, self._numbers, state.opt)
            # The machine has them; dense trees would take memory beside them for as long as the training runs.
            state = state._replace(params={}, opt=map_leaves_like(state.params, state.opt, lambda moments: {}))
        self._take_up(workspace, state)

    def _take_up(self, workspace: Workspace, state: TrainState) -> None:
        self._workspace, self._state = workspace, state
        if self._has_masks:
            self._state = state = state._replace(masks={})
        if not self._whole:
            updates = self._numbers is None
            self._python = PythonSteps(self._work, workspace, state, self._seed, self._draw, updates=updates)

    @property
    def _has_masks(self) -> bool:
        """Whether the workspace has them as positions, and no loss of Python's asks for them in each step."""
        return self.updates_alone and computes_loss(self._work)

    @property
    def updates_alone(self) -> bool:
        """Whether the machine has all of the optimiser's state, and a list of what survives in each pruned leaf."""
        return self._numbers is not None and self._shapes.keys() <= self._workspace.program.positions.keys()

    def is_finite(self) -> bool:
        """Whether all numbers are."""
        return self._workspace.is_finite()

    def network(self) -> TrainState:
        """The dense state without that of the optimiser."""
        return self._bare(self._workspace, self._state, self._step, self._taken)

    @property
    def shapes(self) -> Mapping[str, torch.Size]:
        """Of its masks."""
        return self._shapes

    def packed(self) -> PackedState:
        """The public state of now on its survivors, in memory of its own."""
        workspace, numbers = self._workspace, self._numbers
        assert numbers is not None
        positions = {name: workspace.program.positions[name] for name in self._shapes}

        def packed(vector: Tensor) -> Params:
            return workspace.packed(vector, positions)

        buffers = workspace.buffers(self._state.buffers, self._taken * self._parts)
        opt = optimizer_after(workspace, numbers, self._state.opt, buffers, self._taken, packed)
        return PackedState(
            packed(workspace.values), positions, {name: torch.tensor(shape) for name, shape in self._shapes.items()},
            buffers, opt, torch.full_like(self._state.step, self._step),
        )  # fmt: skip

    def exchange(self, decided: Decided) -> Exchanged:
        """Go on after `drop_and_grow`, under other masks, or pruned."""
        sizes = {name: shape.numel() for name, shape in self._shapes.items()}
        if isinstance(decided, SurvivorPruning):
            found = pruned_survivors(self._workspace, decided, sizes)
        elif isinstance(decided, NewMasks):
            found = exchanged_for(self._workspace, self._masks(self._workspace, self._state), decided)
        else:
            growth, drop_fraction = decided
            if isinstance(growth, GradientGrowth):
                draw = self._step, self._seed
                grow = self._gradients.growing(self._workspace, growth, self._stored, draw, self._state.masks)
            else:
                grow = by_growth(growth, sizes)
            found = exchanged(self._workspace, self._shapes, grow, drop_fraction)
        state = self._state
        if not self._has_masks:
            state = state._replace(masks=masks_of(found.positions, self._shapes))
        program = self._programs.program(state, self._batch, self._stored, found.positions)
        self._take_up(self._workspace.moved(program, found.sources), state)
        return {name: mask_on(found.positions[name], shape) for name, shape in self._shapes.items()}, found.layers

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
        return TrainState(workspace.dense(workspace.values), buffers, self._masks(workspace, state), (), number)

    def _masks(self, workspace: Workspace, state: TrainState) -> Masks:
        """Of a workspace's network."""
        return masks_of(workspace.program.positions, self._shapes) if self._has_masks else state.masks


class Several:
    """Networks in turn, one after the other: on a CPU nothing is gained by mixing them."""

    def __init__(self, loops: Sequence[Loop]) -> None:
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
