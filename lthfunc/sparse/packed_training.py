"""Training of networks that are sparse from the first step on: the machine and its survivors, without dense trees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lthfunc.arguments import check_argument, public
from lthfunc.errors import DivergedError, UserError, invalid
from lthfunc.sparse.builder import Builder
from lthfunc.sparse.capture import TRACED_BATCH, Captured, captured_call
from lthfunc.sparse.exchange import Growing, by_growth, exchanged
from lthfunc.sparse.kernels.build import load_kernels
from lthfunc.sparse.largest_gradients import places_of_largest
from lthfunc.sparse.machine_state import load_optimizer, optimizer_after
from lthfunc.sparse.new_masks import pruned_survivors
from lthfunc.sparse.packed_state import fresh_optimizer
from lthfunc.sparse.program import IN_PARTS, Epilogue, Lowered, Program, Stored, lower
from lthfunc.sparse.updates import Numbers, machine_numbers
from lthfunc.sparse.workspace import Workspace
from lthfunc.training.accumulation import parts_of_batch
from lthfunc.training.mask_updates import MaskUpdates, UpdateContext, check_increasing, checked_exchange, seeded_update
from lthfunc.training.optimizers import Optimizer
from lthfunc.training.prefetch import Prefetcher
from lthfunc.training.results import GradientGrowth
from lthfunc.trees.dataset_checks import check_data
from lthfunc.trees.module_calls import functional_call
from lthfunc.trees.multi_input import InputSpec, taking_apart
from lthfunc.trees.packed_states import PackedState
from lthfunc.trees.rng import key
from lthfunc.trees.types import Buffers, Dataset, NewMasks, Params, Split, SurvivorPruning, TrainState

_CPU = torch.device("cpu")
#: Examples that are evaluated at a time.
_CHUNK = 128
#: Packages whose layers are computed as their graph says.
_KNOWN = ("torch.nn.modules.", "torchvision.models.", "torchvision.ops.", "lthfunc.models.")


@public
def train_packed(
    module: nn.Module,
    data: Dataset,
    *,
    optimizer: Optimizer,
    steps: int,
    batch_size: int = 60,
    seed: int = 0,
    updates: MaskUpdates | None = None,
) -> Callable[[PackedState], PackedState]:
    """Training on survivors alone: a packed state goes in, and comes out trained to step `steps`.

    Memory and time follow the survivors, however many weights were pruned, and the result has the bits of the sparse
    engine on dense trees. module: the network, on the meta device where it would not fit into memory; its loss is cross
    entropy, of tokens where they have targets. data: the data set, which may have several inputs. optimizer: `sgd` or
    `adam`, also chained with what the sparse engine has instructions for. batch_size: examples in a step. seed: decides
    the order of examples. updates: masks that change on the way; their `exchange` has to name what picks weights
    without a number for each, `random_growth` or `gradient_growth`, or `prune_survivors`: there is no dense network to
    be scored. Raises
    UserError for an operation without a lowering, an optimiser that Python would have to compute, a module that could
    not be compared with its graph, and growth by more examples than a step's; DivergedError where a loss, weight or
    gradient is not finite at an update of masks, or a loss or weight at the end.

    >>> data = lf.data.from_tensors("tiny", (torch.randn(9, 4), [0, 1, 1] * 3), (torch.randn(2, 4), [0, 1]), val=3)
    >>> with torch.device("meta"):
    ...     net = nn.Sequential(nn.Linear(4, 50_000), nn.ReLU(), nn.Linear(50_000, 2))
    >>> train = lf.train_packed(net, data, optimizer=lf.adam(1e-3), steps=5, batch_size=2)
    >>> train(lf.init_packed(net, density=0.001))
    PackedState(300 of 300,000 weights remain, step 5)
    """
    data, numbers = check_data(data), machine_numbers(optimizer)
    if numbers is None:
        raise invalid("optimizer", "one with parts in Python", "parts that the sparse engine has instructions for")
    if updates is not None and updates.exchange is None:
        raise invalid("updates", "MaskUpdates without exchange", "one whose exchange drops and grows")
    parts = parts_of_batch(optimizer)

    def transformation(state: PackedState) -> PackedState:
        check_argument("train_packed(…)", "state", state, "PackedState")
        if int(state.step) >= steps:
            raise UserError(f"steps: the state is already at step {int(state.step)} of {steps}")
        load_kernels()
        opt = fresh_optimizer(state, optimizer)
        network = _PackedNetwork(module, data, state, batch_size, numbers)
        running = network.workspace(state, numbers, opt)
        positions, step = state.positions, int(state.step)
        feed = Prefetcher(data.train, batch_size * parts, [seed], _CPU, mapped=data.mapped, stream=data.stream)
        x, y = feed.slotted
        draw = key(seed, "dropout") % 2**32
        check_increasing(() if updates is None else updates.steps)
        changes = [] if updates is None else [each for each in updates.steps if step <= each < steps]
        try:
            for stop in [*changes, steps]:
                while step < stop:
                    count = min(feed.slots, stop - step)
                    feed.fill(step, step + count, steps)
                    running.run(x, y, count, step, draw, parts=parts)
                    step += count
                if not running.is_finite():
                    raise DivergedError(f"training diverged by step {step}: a loss or weight is not finite; lower lr")
                if stop < steps and updates is not None:
                    now = UpdateContext(seed, step, stop == changes[-1])
                    running, positions = network.updated(running, updates, now, state.sizes)
        finally:
            feed.close()
        taken = steps - int(state.step)
        buffers = running.buffers(state.buffers, taken * parts)
        kept = {name: positions[name] for name in state.positions}

        def packed(vector: Tensor) -> Params:
            return running.packed(vector, kept)

        opt = optimizer_after(running, numbers, opt, buffers, taken, packed)
        return PackedState(packed(running.values), kept, state.shapes, buffers, opt, torch.full_like(state.step, steps))

    return transformation


@public
def packed_accuracy(module: nn.Module, state: PackedState, data: Dataset, split: str = "test") -> float:
    """The accuracy of a packed state's network on a split of a data set, computed on survivors alone.

    module: as `train_packed` takes it. state: the network. data: the data set. split: "train", "val" or "test".
    Returns the share of examples, or of tokens, that are right. Raises UserError where the state is another module's,
    and for an operation without a lowering.

    >>> data = lf.data.from_tensors("tiny", (torch.randn(9, 4), [0, 1, 1] * 3), (torch.randn(2, 4), [0, 1]), val=3)
    >>> net = nn.Linear(4, 2)
    >>> lf.packed_accuracy(net, lf.init_packed(net, density=0.5), data) in (0.0, 0.5, 1.0)
    True
    """
    data = check_data(data)
    if split not in ("train", "val", "test"):
        raise invalid("split", split, "train, val or test")
    examples: Split = getattr(data, split)
    load_kernels()
    network = _PackedNetwork(module, data, state, min(_CHUNK, len(examples.x)), None)
    running = network.workspace(state)
    for x, y in zip(examples.x.split(_CHUNK), examples.y.split(_CHUNK), strict=True):
        running.run(x.contiguous()[None], y[None])
    return float(running.totals[1]) / examples.y.numel()


class _PackedNetwork:
    """A network's graph, and programs of it. numbers: of the optimiser that trains it; None: it is evaluated."""

    def __init__(
        self, module: nn.Module, data: Dataset, state: PackedState, batch: int, numbers: tuple[Numbers, ...] | None
    ) -> None:
        self._shape, self._batch = tuple(data.train.x.shape[1:]), batch
        self._stored = Stored(self._shape, data.train.x.dtype, data.scale)
        self._epilogue = Epilogue(gradients=numbers is not None, update=numbers or ())
        self._params = {name: _of_shape(leaf) for name, leaf in module.named_parameters()}
        _check_fits(module, state)
        example = torch.zeros(TRACED_BATCH, *self._shape, dtype=_computed(self._stored.dtype))
        self._graph = _graph(module, data.parts, self._params, state.buffers, example, training=numbers is not None)
        self._buffers = state.buffers
        self._lowered: Lowered | None = None

    def workspace(self, state: PackedState, numbers: tuple[Numbers, ...] = (), opt: object = None) -> Workspace:
        """What runs from a state on."""
        made = Workspace(self._program(state.positions), state.params, state.buffers)
        if numbers:
            load_optimizer(made, numbers, opt)
        return made

    def _program(self, positions: dict[str, Tensor]) -> Program:
        if self._lowered is None or not self._lowered.move_to(positions):
            self._lowered = self._lower(positions)
        return self._lowered.program

    def _lower(self, positions: dict[str, Tensor], builder: Callable[..., Builder] = Builder) -> Lowered:
        return lower(
            self._graph, self._params, self._buffers, {}, batch=self._batch, stored=self._stored,
            epilogue=self._epilogue, positions=positions, builder=builder,
        )  # fmt: skip

    def updated(
        self, running: Workspace, updates: MaskUpdates, now: UpdateContext, sizes: dict[str, int]
    ) -> tuple[Workspace, dict[str, Tensor]]:
        """(what runs on after an update, where its survivors lie)."""
        assert updates.exchange is not None
        with seeded_update(now, _CPU):
            decided = checked_exchange(updates.exchange(_no_dense_network, now))
        if isinstance(decided, NewMasks):
            raise invalid("updates", "an exchange with masks", "a function that picks weights, as random_growth is")
        if isinstance(decided, SurvivorPruning):
            left = pruned_survivors(running, decided, sizes)
            return running.moved(self._program(left.positions), left.sources), left.positions
        growth, fraction = decided
        if isinstance(growth, dict):
            raise invalid("updates", "an exchange with scores", "random_growth or gradient_growth, which ask for none")
        if not 0 <= fraction <= 1:
            raise invalid("drop_fraction", fraction, "a number in [0, 1]")
        if isinstance(growth, GradientGrowth):
            grow = self._by_gradient(running, growth, now)
        else:
            grow = by_growth(growth, sizes)
        found = exchanged(running, sizes, grow, fraction)
        return running.moved(self._program(found.positions), found.sources), found.positions

    def _by_gradient(self, running: Workspace, growth: GradientGrowth, now: UpdateContext) -> Growing:
        """What grows by the gradient of a batch, of which one layer's rows are there at a time."""

        def grow(taken: Mapping[str, Tensor], counts: Mapping[str, int]) -> Mapping[str, Tensor]:
            (x, y), program = growth.batch(), running.program
            if len(x) > self._batch:
                raise invalid("updates", f"a growth by {len(x)} examples", f"at most {self._batch}, the batch_size")
            if program.code.local:
                program = self._lower(program.positions, IN_PARTS).program
            found = places_of_largest(running.aside(program), (x, y), (now.step, now.seed), taken, counts)
            if found is None:
                raise DivergedError(f"training diverged by step {now.step}: a gradient is not finite; lower lr")
            return found

        return grow


def _no_dense_network() -> TrainState:
    raise UserError(
        "updates: a packed training has no dense network to be scored; random_growth, gradient_growth and "
        "prune_survivors ask for none"
    )


def _of_shape(leaf: Tensor) -> Tensor:
    """A tensor of a leaf's shape that takes no memory."""
    return torch.zeros((), dtype=leaf.dtype).expand(leaf.shape)


def _check_fits(module: nn.Module, state: PackedState) -> None:
    """Raise UserError where a state is another module's."""
    ours: dict[str, Any] = {name: tuple(leaf.shape) for name, leaf in module.named_parameters()}
    masked = {name: tuple(shape.tolist()) for name, shape in state.shapes.items()}
    theirs: dict[str, Any] = {name: masked.get(name, tuple(leaf.shape)) for name, leaf in state.params.items()}
    ours |= dict.fromkeys((name for name, _ in module.named_buffers()), "a buffer")
    theirs |= dict.fromkeys(state.buffers, "a buffer")
    for name in {**ours, **theirs}:
        here, there = (each.get(name, "missing") for each in (theirs, ours))
        if here != there:
            raise UserError(f"state: does not fit the module: {name} is {here} in the state and {there} in the module")


def _computed(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a network gets inputs that are stored so: tokens remain numbers."""
    return dtype if dtype == torch.int64 else torch.float32


def _graph(
    module: nn.Module, parts: Sequence[InputSpec], params: Params, buffers: Buffers, example: Tensor, *, training: bool
) -> Captured:
    """The operations of a module, compared with it where it is not made of known layers."""
    name, on_meta = type(module).__name__, any(leaf.is_meta for leaf in module.parameters())
    strange = [type(part).__name__ for part in module.modules() if not type(part).__module__.startswith(_KNOWN)]
    if strange and on_meta:
        raise UserError(
            f"{strange[0]}: cannot be compared with its graph on the meta device; layers of torch.nn alone, in an "
            "nn.Sequential, need no comparison"
        )
    own = taking_apart(module, parts).train(training)
    given = {key: leaf.detach() for key, leaf in module.named_parameters()} if strange else params
    return captured_call(
        name, lambda leaves, inputs: functional_call(own, leaves, inputs), given,
        {key: leaf.clone() for key, leaf in buffers.items()}, (example,),
        training=training, checked=bool(strange),
    )  # fmt: skip
