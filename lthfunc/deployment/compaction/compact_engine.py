"""An engine on the compacted network: what training can neither use nor bring back is left out, and put back after.

Removed weights that survive their mask still feel weight decay and old momentum. No data reaches them, so their course
is the optimiser's own with gradients of zero, which is followed apart, on these few numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from lthfunc.arguments import public
from lthfunc.deployment.compaction.compact import Compacted, compact_training, cut, left_out, put_back
from lthfunc.errors import UserError
from lthfunc.training.chain import ChainContext, numbers_of, updated
from lthfunc.training.engines.interface import Engine, Running, Work
from lthfunc.training.engines.table import Making, make_engine
from lthfunc.training.optimizers import Optimizer
from lthfunc.training.prefetch import Prefetcher
from lthfunc.trees.ops import as_numbers, map_leaves_like, scattered
from lthfunc.trees.packing import columns, packed_like
from lthfunc.trees.types import Params, TrainState


@public
def compact_engine(inner: Making, *, selecting: bool = True) -> Callable[[Work], Engine]:
    """Make an engine that trains compacted networks on another engine, and returns whole states.

    Except for rounding, it computes the same as that engine on the whole network: only what training can neither use
    nor revive is removed. inner: the name of an engine, or a function that makes one. selecting: whether the inputs
    that a linear layer doesn't read are taken out; not for the sparse engine, which doesn't need that.

    Returns a function for the `engine` argument of the trainers. Raises UserError, in the first step, where the network
    cannot be compacted in training (dropout, for example), and for several networks side by side, whose sizes differ.

    >>> import lthfunc as lf
    >>> engine = lf.compact_engine("eager")  # lf.make_trainer(model, data, optimizer=lf.adam(1e-3), engine=engine, ...)
    >>> callable(engine)
    True
    """

    def make(work: Work) -> Engine:
        whole = make_engine(inner, work)
        last: dict[object, Engine] = {}

        def engine_of(small: Compacted) -> Engine:
            """Keep the last engine, so that a ticket's controls and later steps share what was compiled."""
            leaves = {**small.params, **small.buffers}
            shapes = tuple((name, leaf.shape) for name, leaf in leaves.items())
            key = _code(small.model.training), _code(small.model.evaluating), shapes
            if key not in last:
                last.clear()
                last[key] = make_engine(inner, work._replace(model=small.model))
            return last[key]

        def begin(states: Sequence[TrainState], seeds: Sequence[int], prefetcher: Prefetcher) -> Running:
            if len(states) > 1:
                raise UserError("compact: networks of different sizes don't run side by side (jobs: 1)")
            (state,) = states
            shape = tuple(prefetcher.kinds[0][0][2:])
            small = compact_training(work.model, state, shape, selecting=selecting)
            try:
                return _Loop(work, engine_of(small), small, state, seeds, prefetcher)
            except UserError as error:
                raise UserError(
                    f"compact: without its dead units {work.model.name} does not run on the engine {whole.name} "
                    f"({error}); leave compact out"
                ) from error

        def forget() -> None:
            for each in (whole, *last.values()):
                each.forget()

        return Engine(f"compact/{whole.name}", begin, whole.measure, forget)

    return make


def _code(module: nn.Module) -> str:
    """What a compacted network computes."""
    assert isinstance(module, GraphModule)
    return f"{module.code}{module}"


class _Loop:
    """One compacted network in training."""

    def __init__(
        self,
        work: Work,
        engine: Engine,
        small: Compacted,
        state: TrainState,
        seeds: Sequence[int],
        prefetcher: Prefetcher,
    ) -> None:
        self._small, self._whole = small, state
        self._rest = _Rest(work.optimizer, small, state)
        opt = state.opt
        for like in (state.params, state.buffers):  # an average of networks has both
            opt = map_leaves_like(like, opt, lambda tree: cut(tree, small.cuts))
        start = TrainState(small.params, small.buffers, small.masks, opt, state.step)
        self._inner = inner = engine.begin([start], seeds, prefetcher)
        self.draws, self.take, self.losses, self.count_from = inner.draws, inner.take, inner.losses, inner.count_from

    def states(self) -> list[TrainState]:
        """The whole state: what was trained in its places, what was left out as the optimiser alone moves it."""
        (after,) = self._inner.states()
        whole, cuts = self._whole, self._small.cuts
        rest, rest_opt = self._rest.at(int(after.step))

        def joined(part: Params, left_out: Params) -> Params:
            shapes = {name: tuple(leaf.shape) for name, leaf in whole.params.items()}
            spread = {
                name: scattered(leaf.flatten(), self._rest.positions[name], shapes[name])
                for name, leaf in left_out.items()
            }
            return put_back(spread, part, cuts)

        opt = map_leaves_like(after.params, after.opt, joined, rest_opt)
        cut_buffers = cut(whole.buffers, cuts)
        opt = map_leaves_like(cut_buffers, opt, lambda part, before: put_back(before, part, cuts), rest_opt)
        buffers = put_back(whole.buffers, after.buffers, cuts)
        return [TrainState(joined(after.params, rest), buffers, whole.masks, opt, after.step)]


class _Rest:
    """Survivors that were left out, packed, under gradients of zero. positions: where they lie in flattened leaves."""

    def __init__(self, optimizer: Optimizer, small: Compacted, state: TrainState) -> None:
        self.positions = left_out(small, state.params, state.masks)
        self._optimizer, shapes = optimizer, {name: tuple(leaf.shape) for name, leaf in state.params.items()}

        def packed(tree: Params) -> Params:
            return columns(packed_like(tree, self.positions), shapes)

        self._params, self._opt = packed(state.params), map_leaves_like(state.params, state.opt, packed)
        self._step = int(state.step)
        moments: list[Tensor] = []
        map_leaves_like(self._params, self._opt, lambda tree: moments.extend(tree.values()))
        still = all(getattr(numbers, "weight_decay", 1) == 0 for numbers in numbers_of(optimizer))
        self._moves = not still or any(as_numbers([moment.any() for moment in moments]))

    def at(self, step: int) -> tuple[Params, Any]:
        """(params, optimiser state) at a step."""
        zeros = {name: torch.zeros_like(leaf) for name, leaf in self._params.items()}
        while self._moves and self._step < step:
            now = torch.tensor(self._step, device=next(iter(zeros.values())).device)
            context = ChainContext(self._params, now, gradient=lambda params: zeros)
            self._params, self._opt = updated(self._optimizer, zeros, self._opt, context)
            self._step += 1
        return self._params, self._opt
