"""Which inputs are sequences of tokens, also with numbers beside each token, such as a mask of padding."""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from lthfunc.sparse.capture import TRACED_BATCH, Captured, captured
from lthfunc.sparse.program import Stored
from lthfunc.trees.model import Model
from lthfunc.trees.multi_input import InputSpec, UnpackInputs


def length_of(model: Model, stored: Stored) -> int | None:
    """Tokens of a sequence where inputs are sequences of them, or several inputs are as long each; None for others."""
    parts = _parts_of(model.training)
    if stored.scale is not None or len(stored.shape) != 1:
        return None
    if not parts:
        return stored.shape[0] if stored.dtype == torch.int64 else None
    shapes = {part.shape for part in parts}
    (length,) = shapes.pop() if len(shapes) == 1 else (0,)
    return length if length and stored.shape == (length * len(parts),) else None


def of_each_token(model: Model) -> Stored:
    """How a token is stored: as a number, or as one of each input."""
    parts = _parts_of(model.training)
    return Stored((len(parts),), torch.float32) if parts else Stored((1,), torch.int64)


def captured_sequences(model: Model, length: int, *, training: bool, examples: int = TRACED_BATCH) -> Captured:
    """The graph of sequences of this length."""
    numbers = max(1, len(_parts_of(model.training)))
    return captured(_of_length(model, length), (numbers * length,), training=training, examples=examples)


def drawn_sequences(model: Model, sequences: int, length: int, vocabulary: int, draw: torch.Generator) -> Tensor:
    """Random sequences; of several inputs, whole numbers are 0 or 1, as those of a mask are."""
    parts = _parts_of(model.training)
    if not parts:
        return torch.randint(0, vocabulary, (sequences, length), generator=draw)
    drawn = torch.rand(sequences, len(parts), length, generator=draw)
    whole = torch.tensor([not part.dtype.is_floating_point for part in parts])[:, None]
    return torch.where(whole, drawn.round(), drawn).flatten(1)


def _parts_of(module: nn.Module) -> tuple[InputSpec, ...]:
    hooks = module._forward_pre_hooks.values()
    return next((hook.parts for hook in hooks if isinstance(hook, UnpackInputs)), ())


@functools.lru_cache(maxsize=16)  # so that graphs of it are kept, too
def _of_length(model: Model, length: int) -> Model:
    """A model that takes inputs of this length apart; its modules share all else with the model's."""
    if not _parts_of(model.training):
        return model
    training, evaluating = (_taking_apart(module, length) for module in (model.training, model.evaluating))
    return model._replace(training=training, evaluating=evaluating)


def _taking_apart(module: nn.Module, length: int) -> nn.Module:
    def other(hook: Any) -> Any:
        if not isinstance(hook, UnpackInputs):
            return hook
        return UnpackInputs(tuple(part._replace(shape=(length,)) for part in hook.parts))

    found = copy.copy(module)
    hooks = ((number, other(hook)) for number, hook in module._forward_pre_hooks.items())
    found._forward_pre_hooks = OrderedDict(hooks)
    return found
