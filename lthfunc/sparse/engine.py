"""The sparse engine: steps on survivors alone, in one call of the machine for many steps."""

from __future__ import annotations

from collections.abc import Sequence

from lthfunc.errors import UserError, invalid
from lthfunc.sparse.cost_model import check_mode, check_optimizer
from lthfunc.sparse.evaluator import Evaluator
from lthfunc.sparse.growth_gradients import GrowthGradients
from lthfunc.sparse.kernels.build import why_no_kernels
from lthfunc.sparse.loops import Loop, Several
from lthfunc.sparse.program import Stored
from lthfunc.sparse.python_losses import check_features
from lthfunc.sparse.thread_tuner import ThreadTuners
from lthfunc.sparse.training_programs import Programs
from lthfunc.training.engines.interface import Engine, Network, OnSurvivors, Running, Work
from lthfunc.training.evaluation import Evaluation
from lthfunc.training.prefetch import Prefetcher
from lthfunc.trees.types import Split, TrainState


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
        raise invalid("precision", work.precision, "fp32 or bf16 with the engine sparse")
    if work.collectives.world_size > 1:
        raise invalid("engine", "sparse", "eager or compile on several ranks")
    check_features(work)
    check_optimizer(work)
    reason = why_no_kernels()
    if reason is not None:
        raise UserError(reason)
    programs, gradients, tuners = Programs(work), GrowthGradients(work), ThreadTuners()
    evaluable: set[Stored] = set()

    def begin(states: Sequence[TrainState], seeds: Sequence[int], prefetcher: Prefetcher) -> Running:
        if states[0].step.device.type != "cpu":
            raise invalid("device", states[0].step.device, "cpu with the engine sparse")
        x, y = prefetcher.slotted
        loops = []
        for number, (state, seed) in enumerate(zip(states, seeds, strict=True)):
            slots = (x, y) if len(states) == 1 else (x[:, number], y[:, number])
            loops.append(Loop(work, programs, gradients, tuners, state, seed, slots))
        # A network that cannot be evaluated is refused before it is trained: each mode has its own graph.
        stored = Stored(tuple(x.shape[2 if len(states) == 1 else 3 :]), x.dtype, work.scale)
        if stored not in evaluable:
            check_mode(work, stored, training=False)
            evaluable.add(stored)
        return loops[0] if len(loops) == 1 else Several(loops)

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


def _loops_of(running: Running) -> Sequence[Loop]:
    """The loops of this engine within one that runs; none of another engine's, which `sparse_or` may have chosen."""
    if isinstance(running, Several):
        return running.loops
    return [running] if isinstance(running, Loop) else []
