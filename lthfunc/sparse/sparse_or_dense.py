"""The sparse engine where it is faster, a dense one elsewhere: decided for every training by its masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lthfunc.arguments import public
from lthfunc.sparse.cost_model import cost_of_teachers, is_faster
from lthfunc.sparse.engine import sparse_engine
from lthfunc.training.engines.interface import Engine, Network, Running, Work
from lthfunc.training.engines.table import make_engine
from lthfunc.training.evaluation import Evaluation
from lthfunc.training.prefetch import Prefetcher
from lthfunc.trees.packed_states import PackedState
from lthfunc.trees.types import Masks, Split, TrainState


def always_sparse(engine: str, work: Work, shape: tuple[int, ...]) -> bool:
    """Whether an engine of this name does this work on the sparse engine at whatever density."""
    return engine == "sparse" or (engine.startswith("sparse/") and _is_faster(work, shape, {}))


def _is_faster(work: Work, shape: tuple[int, ...], masks: Masks) -> bool:
    return is_faster(work.model, shape, masks, cost_of_teachers(work.loss, shape))


@public
def sparse_or(dense: str) -> Callable[[Work], Engine]:
    """Make the engine "sparse/<dense>": for each training, the cost model picks one of the two by shapes and densities.

    dense: the other engine, "eager" or "compile". Returns what a trainer takes as its engine.

    >>> engine = lf.sparse_or("eager")  # lf.make_trainer(model, data, optimizer=lf.adam(1e-3), engine=engine, ...)
    >>> callable(engine)
    True
    """

    def make(work: Work) -> Engine:
        engines = {True: sparse_engine(work), False: make_engine(dense, work)}

        def choose(masks: Masks, shape: tuple[int, ...]) -> Engine:
            return engines[_is_faster(work, shape, masks)]

        def engine_of(states: Sequence[TrainState], prefetcher: Prefetcher) -> Engine:
            return choose(states[0].masks, tuple(prefetcher.kinds[0][0][2 if len(states) == 1 else 3 :]))

        def begin(states: Sequence[TrainState], seeds: Sequence[int], prefetcher: Prefetcher) -> Running:
            return engine_of(states, prefetcher).begin(states, seeds, prefetcher)

        def change(running: Running, states: Sequence[TrainState], prefetcher: Prefetcher) -> bool:
            # Masks may decide for the other engine, which does not know the loop.
            return engine_of(states, prefetcher).change(running, states, prefetcher)

        def measure(networks: Sequence[Network], split: Split) -> list[Evaluation]:
            if any(isinstance(each, PackedState) for each in networks):  # which the sparse engine has trained
                return engines[True].measure(networks, split)
            # What is zero counts as pruned: masks are not known here, and nothing else matters to a forward pass.
            masks = {name: networks[0].params[name] != 0 for name in work.model.prunable}
            return choose(masks, tuple(split.x.shape[1:])).measure(networks, split)

        return Engine(f"sparse/{dense}", begin, measure, engines[False].forget, change, engines[True].on_survivors)

    return make
