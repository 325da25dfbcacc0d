"""A user's own module, tried before anything is trained: what cannot work is told in one line."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from lthfunc.errors import UserError
from lthfunc.trees.model import Model, apply_evaluating, apply_training, example_input
from lthfunc.trees.module_errors import failing, taking_inputs
from lthfunc.trees.multi_input import InputSpec, UnpackInputs
from lthfunc.trees.outputs import own_loss, prediction


def materialize_lazy(
    name: str, module: nn.Module, shape: tuple[int, ...], inputs: str, parts: Sequence[InputSpec]
) -> None:
    """Give lazy modules their shapes: one call on an example."""
    if not any(nn.parameter.is_lazy(leaf) for leaf in (*module.parameters(), *module.buffers())):
        return
    x = torch.zeros(2, *shape, dtype=torch.int64 if inputs == "text" else None)
    args, kwargs = UnpackInputs(tuple(parts))(module, (x,), {}) if parts else ((x,), {})
    with taking_inputs(f"arch: {name!r}", shape, module), torch.no_grad(), torch.random.fork_rng(devices=[]):
        module(*args, **kwargs)


def check_outputs(
    name: str, model: Model, shape: tuple[int, ...], classes: int, any_outputs: bool, places: tuple[int, ...] = ()
) -> None:
    """Run a stranger's module once in each mode, so that what cannot work is refused before training starts.

    places: (height, width) of targets that are a class for each pixel.
    """
    params, buffers = model.init(0)
    x = example_input(model, shape, 2)
    mine = torch.random.fork_rng(devices=[])  # dropout draws
    tried = model._replace(training=copy.deepcopy(model.training), evaluating=copy.deepcopy(model.evaluating))
    with taking_inputs(f"arch: {name!r}", shape, tried.training, tried.evaluating), torch.no_grad(), mine:
        apply_training(tried, params, buffers, x)
        out = apply_evaluating(tried, params, buffers, x)
    if any_outputs or own_loss(out) is not None:
        return
    try:
        logits = prediction(out)
    except UserError as error:
        raise UserError(f"arch: {name!r}: {error}") from error
    wanted = (*shape, classes) if model.tokens else (classes, *places)
    # Tokens have a class each, or one together.
    fitting = {wanted, (classes,)} if model.tokens else {wanted}
    if tuple(logits.shape[1:]) not in fitting or len(logits) != 2:
        raise UserError(f"arch: {name!r} gives outputs of shape {tuple(logits.shape[1:])}, not {wanted}")


def check_tokens(name: str, model: Model, *inputs: torch.Tensor) -> None:
    """Run a network once on the least and the largest of the tokens, which an embedding may not have.

    Raises UserError where it can't take them.
    """
    least, most = min(int(x.min()) for x in inputs), max(int(x.max()) for x in inputs)
    params, buffers = model.init(0)
    example = torch.full_like(inputs[0][:1], least), torch.full_like(inputs[0][:1], most)
    what = f"arch: {name!r} cannot take tokens from {least} to {most}"
    with failing(what, model.evaluating), torch.no_grad(), torch.random.fork_rng(devices=[]):
        apply_evaluating(model, params, buffers, torch.cat(example))
