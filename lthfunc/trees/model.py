"""A network as pure functions over trees, made from any `nn.Module`."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lthfunc.argument_hints import described
from lthfunc.arguments import public
from lthfunc.errors import UserError
from lthfunc.printable import first_few
from lthfunc.tracebacks import call_user_function, function_name, is_library_function
from lthfunc.trees.attention_paths import one_path_of_attention
from lthfunc.trees.initialisers import Initialiser, dependent_buffers, drawn_matrices, fixed_matrices, glorot_normal
from lthfunc.trees.module_attributes import copy_module
from lthfunc.trees.module_calls import functional_call
from lthfunc.trees.multi_input import InputSpec, UnpackInputs
from lthfunc.trees.ops import apply_masks, check_device, clone, full_masks, to_device
from lthfunc.trees.prunable import check_pure, default_prunable, is_pure_module, matching_names, select_prunable
from lthfunc.trees.types import Buffers, Params, TrainState


class Model(NamedTuple):
    """The structure of a network; it holds no values that training changes.

    training, evaluating: the module in its two modes. prunable: names of the parameters that may be pruned, in module
    order. init: seed -> (params, buffers). tokens: whether inputs are int64 tokens (n, length). output: the name of the
    output layer's weight. pure: whether the module is known to write into neither inputs nor parameters; any other is
    given copies. fixed: matrices that are neither pruned nor drawn, so that all seeds share them. redraw: draws
    parameters where `init` takes them from a file. note: a line on what of that file was not used.
    """

    name: str
    training: nn.Module
    evaluating: nn.Module
    prunable: tuple[str, ...]
    init: Callable[[int], tuple[Params, Buffers]]
    tokens: bool = False
    output: str = ""
    pure: bool = False
    fixed: tuple[str, ...] = ()
    redraw: Callable[[int], tuple[Params, Buffers]] | None = None
    note: str = ""


def apply_training(model: Model, params: Params, buffers: Buffers, x: Tensor) -> tuple[Any, Buffers]:
    """(outputs in training mode, the buffers after the call, which BatchNorm updates). Changes no argument."""
    return run_training(model, *_private(model, (params, buffers, x)))


def apply_evaluating(model: Model, params: Params, buffers: Buffers, x: Tensor) -> Any:
    """Outputs in evaluation mode (running statistics, no dropout). Changes no argument."""
    params, buffers, x = _private(model, (params, buffers, x))
    with one_path_of_attention:
        return functional_call(model.evaluating, {**params, **buffers}, (x,))


def run_training(model: Model, params: Params, buffers: Buffers, x: Tensor) -> tuple[Any, Buffers]:
    """`apply_training` for callers that own params and inputs, into which the module may write.

    What it writes into a parameter then counts, as in plain PyTorch (`nn.Embedding(max_norm=...)`).
    """
    # A module in training mode writes into the buffers it is given, so it gets copies of its own; or it puts others
    # in their place, which the dictionary then holds.
    leaves = {**params, **{name: buffer.clone() for name, buffer in buffers.items()}}
    outputs = functional_call(model.training, leaves, (x,))
    return outputs, {name: leaves[name] for name in buffers}


def _private(model: Model, arguments: tuple[Params, Buffers, Tensor]) -> tuple[Params, Buffers, Tensor]:
    """Copies, unless the module is known to write into nothing."""
    return arguments if model.pure else clone(arguments)


@public
def from_module(
    module: nn.Module,
    *,
    name: str | None = None,
    init: Initialiser = glorot_normal,
    prunable: Sequence[str] = (),
    prune_only: Sequence[str] = (),
    never_prune: Sequence[str] = (),
    tokens: bool = False,
    parts: Sequence[InputSpec] = (),
    warn: bool = True,
) -> Model:
    """Make a `Model` of any `nn.Module`, which is copied and never changed.

    By default the weights of linear, convolution, embedding, recurrent and attention layers can be pruned. A weight
    that several layers share is one parameter with one mask. Parameters that don't require a gradient become buffers.

    name: of the model, by default its class's. init: draws the parameters from a seed (`glorot_normal`, `as_built`).
    prunable: name patterns (``"*.gate"``) of further parameters to prune; prune_only: of the only ones; never_prune: of
    those to exclude. tokens: whether inputs are int64 tokens (n, length). parts: the inputs of a module that takes
    several (`Dataset.parts`). warn: whether to warn of matrices that are neither pruned nor drawn from the seed.

    Returns the model. Raises UserError where a pattern matches nothing, no parameter is prunable, or the module has
    state that is neither a parameter nor a buffer.

    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> lf.from_module(net).prunable
    ('0.weight', '2.weight')
    """
    check_pure(module)
    pure = is_pure_module(module)
    module = _freezing(copy_module(module)).requires_grad_(False).cpu()
    if parts:
        module.register_forward_pre_hook(UnpackInputs(tuple(parts)), with_kwargs=True)  # type: ignore[arg-type]
    params = {key: value.detach() for key, value in module.named_parameters()}
    buffers = {key: value.detach().clone() for key, value in module.named_buffers()}
    names = default_prunable(module, params)
    more = set().union(*(matching_names("prunable", pattern, list(params)) for pattern in prunable))
    if not names and not more and not prune_only:
        raise UserError(
            f"{type(module).__name__} has no linear, convolution, embedding, recurrent or attention weight to prune; "
            "name others with prunable=[...]"
        )

    def initialise(seed: int) -> tuple[Params, Buffers]:
        drawn = _drawn(init, module, params, seed)
        states = dependent_buffers(module, params, buffers, drawn)
        return (
            {key: drawn[key] for key in params},
            {key: drawn[key] if key in drawn else states[key].clone() for key in buffers},
        )

    model = Model(
        name=name or type(module).__name__,
        training=_sharing(module).train(),
        evaluating=_sharing(module).eval(),
        prunable=names,
        init=initialise,
        tokens=tokens,
        output=names[-1] if names else "",
        pure=pure,
        fixed=fixed_matrices(module, params, names) if init is glorot_normal else (),
    )
    model = _also_pruned(model, tuple(key for key in params if key in {*names, *more}))
    if more and not names:
        model = model._replace(output=model.prunable[-1])
    model = with_prunable(model, prune_only, never_prune)
    if warn and model.fixed:
        warnings.warn(fixed_line(model), stacklevel=3)  # behind `public`
    return model


def _sharing(module: nn.Module) -> nn.Module:
    """A copy whose parameters lie in the same memory, since nobody writes into them: calls are given others."""
    same = {id(leaf): nn.Parameter(leaf.detach(), False) for leaf in module.parameters() if type(leaf) is nn.Parameter}
    return copy.deepcopy(module, same)


def _drawn(init: Initialiser, module: nn.Module, params: Params, seed: int) -> Params:
    """The initialiser's values. Raises UserError where they don't match the parameters."""
    given = clone(params)
    if is_library_function(init):
        return init(module, given, seed)
    name = function_name(init)
    own = copy.deepcopy(module)  # into which it may write
    drawn: Any = call_user_function("init", name, lambda: init(own, given, seed))
    for key, leaf in params.items():
        found = drawn.get(key) if isinstance(drawn, dict) else drawn
        if not isinstance(found, Tensor) or found.shape != leaf.shape:
            what = f"{key} of shape {tuple(found.shape)}" if isinstance(found, Tensor) else described(drawn)
            raise UserError(f"init: {name!r} returned {what} (expected each parameter's values)")
    return {key: drawn[key] for key in params}


def fixed_line(model: Model) -> str:
    """A line that names the matrices that are neither pruned nor drawn from the seed; "" if there are none."""
    if not model.fixed:
        return ""
    return f"{model.name}: neither pruned nor reinitialised, so the same for every seed: {first_few(model.fixed)}"


@public
def with_prunable(model: Model, prune_only: Sequence[str] = (), never_prune: Sequence[str] = ()) -> Model:
    """The model with other prunable parameters, chosen by name patterns as in a shell (``"conv*"``).

    prune_only: patterns of the parameters to prune, by default those that are prunable now. never_prune: patterns of
    those to exclude. Raises UserError where a pattern matches nothing, or nothing is left to prune.

    >>> net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    >>> lf.with_prunable(lf.from_module(net), never_prune=["1.*"]).prunable
    ('0.weight',)
    """
    if not prune_only and not never_prune:
        return model
    params = [name for name, _ in model.training.named_parameters()]
    return _also_pruned(model, select_prunable(params, model.prunable, prune_only, never_prune))


def _also_pruned(model: Model, names: tuple[str, ...]) -> Model:
    """The model with these prunable parameters; matrices that were fixed so far are now drawn."""
    further = tuple(name for name in model.fixed if name in names)
    model = model._replace(prunable=names, fixed=tuple(name for name in model.fixed if name not in names))
    if not further:
        return model
    before = model.init

    def initialise(seed: int) -> tuple[Params, Buffers]:
        params, buffers = before(seed)
        return {**params, **drawn_matrices(further, params, seed)}, buffers

    return model._replace(init=initialise)


def example_input(model: Model, shape: tuple[int, ...], examples: int = 1) -> Tensor:
    """Zeros that the model accepts, (examples, *shape): float32, or int64 for tokens."""
    return torch.zeros(examples, *shape, dtype=torch.int64 if model.tokens else torch.float32)


def _freezing(module: nn.Module) -> nn.Module:
    """Turn parameters that don't require a gradient into buffers, unless none does (a module made for inference)."""
    if not any(leaf.requires_grad for leaf in module.parameters()):
        return module
    for part in module.modules():
        for name, leaf in list(part._parameters.items()):
            if leaf is not None and not leaf.requires_grad:
                del part._parameters[name]
                part.register_buffer(name, leaf.detach())
    return module


@public
def init(model: Model, seed: int = 0, device: torch.device | str = "cpu", *, zeros_pruned: bool = False) -> TrainState:
    """The state of a model at step 0: params drawn from `seed`, full masks, no optimiser state yet.

    device: where its tensors are. zeros_pruned: whether prunable weights that are zero count as pruned, as those of a
    sparse network made with ``from_module(..., init=as_built)``.

    >>> state = lf.init(lf.from_module(nn.Linear(4, 2)), seed=1)
    >>> int(state.step), lf.density(state.masks)
    (0, 1.0)
    """
    check_device(device)
    params, buffers = to_device(model.init(seed), device)
    masks = full_masks(params, model.prunable)
    if zeros_pruned:
        masks = {name: params[name] != 0 for name in masks}
        params = apply_masks(params, masks)
    return TrainState(params, buffers, masks, (), torch.zeros((), dtype=torch.int64, device=device))
