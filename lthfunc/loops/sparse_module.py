"""A module that computes with its surviving weights alone, for anybody's training loop."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from lthfunc.arguments import check_argument, public
from lthfunc.errors import UserError
from lthfunc.loops.call_arguments import CallArguments, taken_apart
from lthfunc.loops.survivors import Survivors, optimizers_of, replace
from lthfunc.printable import counted, dtype_name
from lthfunc.sparse.batch_sizes import twins
from lthfunc.sparse.capture import OTHER_BATCH, TRACED_BATCH, CannotTraceError, Captured, captured_call
from lthfunc.sparse.kernels.build import load_kernels
from lthfunc.sparse.partition import Input
from lthfunc.sparse.partitioned import PartitionedCall
from lthfunc.sparsify.transforms import ticket
from lthfunc.trees.module_attributes import copy_module
from lthfunc.trees.module_calls import functional_call
from lthfunc.trees.module_errors import failing
from lthfunc.trees.ops import clone, count, scattered
from lthfunc.trees.prunable import check_pure, is_pure_module
from lthfunc.trees.types import Masks, Ticket, TrainState

#: Kinds of calls (shapes of inputs, modes) for which a module keeps programs.
_CALLS = 8


class SparseModule(nn.Module):
    """A module on its surviving weights (`sparse_module`).

    Parameters, buffers and submodules have the names of the dense module; a parameter with a mask is the vector of its
    survivors. `state_dict` gives and `load_state_dict` takes dense tensors.
    """

    _template: nn.Module

    def __init__(self, module: nn.Module, masks: Masks) -> None:
        super().__init__()
        template = copy_module(module)
        # What the module holds is held here, under the same names; the module itself is only traced.
        for kind in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            self.__dict__[kind] = template.__dict__[kind]
        self.__dict__.update(_template=template, training=template.training)
        self._survivors = Survivors(template)
        self._survivors.check("sparse_module", masks)
        self._survivors.set(masks)
        self._parts = [self, *list(template.modules())[1:]]
        self._pure = is_pure_module(template)
        self._calls: dict[Any, PartitionedCall] = {}
        self._named: set[str] = set()
        self.register_state_dict_post_hook(_give_dense)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_take_dense)  # type: ignore[no-untyped-call]

    @property
    def masks(self) -> Masks:
        """The masks of now: bool, in the shape of the dense parameters, True where a weight remains."""
        return self._survivors.masks

    def set_masks(
        self, masks: Masks, optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None
    ) -> None:
        """Hold other masks; nothing is compiled. Parameters without one in `masks` keep theirs.

        Values of weights that remain are kept, those of new ones are zero. optimizer: the one that trains this module,
        or several: its moments are moved in the same way; None if you make a new one, since the moments of the old one
        would belong to other weights. Raises UserError for masks of another network, and for an optimiser that
        owns no parameter of this one, or whose state is not kept weight by weight, before anything is changed.
        """
        check_argument("set_masks", "masks", masks, "Masks")
        self._survivors.check("set_masks", masks)
        self._survivors.set(masks, optimizers_of(optimizer, self._survivors.weights().params))
        for call in self._calls.values():
            call.forget()

    @property
    def state(self) -> TrainState:
        """A copy of the dense network as of now, which every function of this library takes; `step` is 0."""
        params, buffers = self._survivors.dense()
        return TrainState(params, buffers, self.masks, (), torch.tensor(0))

    def ticket(self) -> Ticket:
        """The masks, and the weights and buffers of now."""
        return ticket(self.state)

    def dense(self) -> nn.Module:
        """A copy as a module of the original kind, with dense parameters that are zero where they are pruned."""
        module, weights = copy.deepcopy(self._template), self._survivors.weights()
        replace(module, {
            name: nn.Parameter(weights.dense(name).detach().clone(), leaf.requires_grad)
            for name, leaf in weights.params.items()
        })  # fmt: skip
        return module.train(self.training)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # which compiles what is around it
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return self._called(args, kwargs)
        return self._called(args, kwargs)

    def extra_repr(self) -> str:
        """What a printed module says of it."""
        return f"{type(self._template).__name__}: {count(self.masks)}"

    def _called(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if torch._C._functorch.maybe_current_level() is not None:
            raise UserError("sparse_module: takes gradients by backward(), and cannot be called under torch.func")
        if torch.compiler.is_exporting():
            raise UserError("sparse_module: cannot be exported; dense() gives a module that can")
        arguments = taken_apart(args, kwargs)
        tensors, gradients = arguments.tensors, torch.is_grad_enabled()
        examples = next((len(each) for each in tensors if each.ndim), 0)
        inputs = tuple(
            Input(each.ndim > 0 and len(each) == examples, gradients and each.requires_grad) for each in tensors
        )
        shapes = tuple(
            (each.shape[1:] if told.batched else each.shape, each.dtype, each.is_cpu)
            for each, told in zip(tensors, inputs, strict=True)
        )
        weights = self._survivors.weights()
        frozen = frozenset([name for name, leaf in weights.params.items() if gradients and not leaf.requires_grad])
        key = arguments.kind, inputs, shapes, gradients, frozen, tuple([part.training for part in self._parts])
        call = self._calls.get(key)
        if call is None:
            call = self._made(arguments, inputs, gradients, frozen)
            if len(self._calls) >= _CALLS:
                self._calls.pop(next(iter(self._calls)))
            self._calls[key] = call
        if examples == 1 and call.needs_several:  # as PyTorch does, for want of a variance
            raise UserError("sparse_module: batch normalisation in training requires more than one example")
        try:
            return call(tensors, weights)
        except RuntimeError:  # of an operation that is left to PyTorch, which knows of no layer
            self._try(arguments)
            raise

    def _made(
        self, arguments: CallArguments, inputs: tuple[Input, ...], gradients: bool, frozen: frozenset[str]
    ) -> PartitionedCall:
        for tensor in arguments.tensors:
            if not tensor.is_cpu:
                raise UserError(f"sparse_module: computes on the CPU; an input is on {tensor.device}")
            if tensor.is_floating_point() and tensor.dtype != torch.float32:
                raise UserError(f"sparse_module: computes in float32; an input is {dtype_name(tensor.dtype)}")
        if not any(each.batched for each in inputs):
            raise UserError("sparse_module: takes a batch: a tensor with examples along its first dimension")
        try:
            traced = self._traced(arguments, inputs, TRACED_BATCH)
        except CannotTraceError as error:
            self._try(arguments)
            raise UserError(f"sparse_module: {type(self._template).__name__} cannot be traced{error.why}") from error
        known: list[Mapping[Node, Node]] = []

        def twin() -> Mapping[Node, Node]:
            if not known:
                found = twins(traced, self._traced(arguments, inputs, OTHER_BATCH))
                if found is None:
                    raise UserError(f"sparse_module: {traced.name} cannot be traced: it depends on the batch size")
                known.append(found)
            return known[0]

        buffers = dict(self._survivors.weights().buffers)
        call = PartitionedCall(traced, inputs, twin, buffers, gradients=gradients, frozen=frozen)
        self._tell(call)
        return call

    def _traced(self, arguments: CallArguments, inputs: tuple[Input, ...], examples: int) -> Captured:
        weights, template = self._survivors.weights(), self._template
        template.training = self.training
        examples_of = [
            torch.zeros(examples, *each.shape[1:], dtype=each.dtype) if told.batched else each.detach().clone()
            for each, told in zip(arguments.tensors, inputs, strict=True)
        ]

        def call(leaves: dict[str, Tensor], tensors: tuple[Tensor, ...]) -> Any:
            return functional_call(template, leaves, *arguments.rebuilt(tensors))

        first = examples == TRACED_BATCH
        return captured_call(
            type(template).__name__, call, {name: weights.dense(name).detach() for name in weights.params},
            {name: leaf.detach().clone() for name, leaf in weights.buffers.items()}, tuple(examples_of),
            training=True, located=first, checked=first and not self._pure,
        )  # fmt: skip

    def _try(self, arguments: CallArguments) -> None:
        """Call the dense module as this one is called. Raises UserError where PyTorch fails on these arguments."""
        params, buffers = self._survivors.dense()
        args, kwargs = arguments.rebuilt(clone(arguments.tensors))
        told = failing(f"sparse_module: {type(self._template).__name__} fails", self._template)
        with told, torch.no_grad(), torch.random.fork_rng(devices=[]):
            functional_call(self._template, {**params, **buffers}, args, kwargs)

    def _tell(self, call: PartitionedCall) -> None:
        """Warn of operations that are left to PyTorch, each once."""
        news = [words for words in call.refused if words not in self._named]
        if news:
            self._named.update(news)
            more = f" and {counted(len(news) - 1, 'other operation')}" if len(news) > 1 else ""
            warnings.warn(
                f"sparse_module: the sparse engine has no rule for {news[0]}{more}; PyTorch computes "
                f"{'them' if more else 'it'}",
                stacklevel=8,
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SparseModule:
        probe = fn(torch.zeros(1))
        if probe.device.type != "cpu" or probe.dtype != torch.float32:
            raise UserError(
                f"sparse_module: computes in float32 on the CPU, not in {dtype_name(probe.dtype)} on "
                f"{probe.device}; dense() gives a module for it"
            )
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_calls": {}}


@public
def sparse_module(module: nn.Module, masks: Masks) -> SparseModule:
    """A module of the surviving weights alone, whose forward and backward run on the sparse engine, on a CPU.

    It trains in any PyTorch loop, with any optimiser, loss and data. `SparseModule.set_masks` gives it other masks.

    module: is copied, and stays as it is; float32 on the CPU. masks: by parameter name, bool, in the shapes of the
    parameters; the values of pruned weights are dropped, and parameters without a mask stay dense.

    Returns a module with the names of the dense one, whose masked parameters are vectors of their survivors: make the
    optimiser of its parameters. Its `state_dict` has dense tensors. Raises UserError where masks and module don't fit,
    for parameters that are not float32 or not on the CPU, and, at the first call, for a module that cannot be traced.
    An operation that the sparse engine has no rule for is computed by PyTorch; a warning names it.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> state = lf.prune(density=0.25)(lf.init(lf.from_module(net)))
    >>> sparse = lf.sparse_module(net, state.masks)
    >>> optimizer = torch.optim.Adam(sparse.parameters())
    >>> sparse(torch.ones(3, 4)).sum().backward(); optimizer.step()
    >>> sum(leaf.numel() for leaf in sparse.parameters()), sparse.state_dict()["0.weight"].shape
    (22, torch.Size([8, 4]))
    """
    module = getattr(module, "_orig_mod", module)  # of torch.compile
    if any(isinstance(part, SparseModule) for part in module.modules()):
        raise UserError("sparse_module: module is sparse already; set_masks gives it other masks")
    for name, leaf in module.named_parameters():
        if leaf.device.type != "cpu":
            raise UserError(f"sparse_module: computes on the CPU; {name} is on {leaf.device}")
        if leaf.dtype != torch.float32:
            raise UserError(f"sparse_module: computes in float32; {name} is {dtype_name(leaf.dtype)}")
    check_pure(module)
    load_kernels()
    return SparseModule(module, masks)


def _give_dense(module: SparseModule, state_dict: dict[str, Any], prefix: str, metadata: Any) -> None:
    survivors = module._survivors
    for name, first in survivors.names.items():
        if first in survivors.positions and prefix + name in state_dict:
            leaf = state_dict[prefix + name]
            state_dict[prefix + name] = scattered(leaf, survivors.positions[first], survivors.shapes[first])


def _take_dense(module: SparseModule, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    survivors = module._survivors
    for name, first in survivors.names.items():
        kept, dense = survivors.positions.get(first), state_dict.get(prefix + name)
        if kept is None or not isinstance(dense, Tensor):
            continue
        shape = survivors.shapes[first]
        if dense.shape != shape:
            raise UserError(f"load_state_dict: {name} is of shape {tuple(dense.shape)}, here {tuple(shape)}")
        flat = dense.detach().reshape(-1)
        values = flat.index_select(0, kept)
        pruned = int(flat.count_nonzero()) - int(values.count_nonzero())
        if pruned:
            raise UserError(
                f"load_state_dict: {name} has {pruned} weights other than zero that are pruned here; call set_masks "
                "with the masks that it was trained with first, or multiply it by `masks`"
            )
        state_dict[prefix + name] = values
