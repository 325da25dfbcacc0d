"""Synthetic data labelled by a sparse network, so that what pruning should find is known."""

from __future__ import annotations

import torch
from torch import Tensor

from lthfunc.data.reader_options import check_whole
from lthfunc.data.tensors import from_tensors
from lthfunc.errors import invalid
from lthfunc.trees.rng import generator
from lthfunc.trees.types import Dataset, Ticket


def planted_teacher(
    inputs: int = 40, hidden: int = 20, classes: int = 4, density: float = 0.1, seed: int = 0
) -> Ticket:
    """A random sparse ReLU network of `inputs`, `hidden` and `classes` units.

    Each unit reads the share `density` of the units before it. Its masks are exact: the same number of weights in each
    row. Names are those of a Sequential (``0.weight``). seed: of the draws. Raises UserError for numbers out of range.

    >>> teacher = lf.data.planted_teacher(inputs=40, hidden=20, classes=4, density=0.1, seed=0)
    >>> lf.layer_counts(teacher.masks)
    {'0.weight': Count(kept=80, total=800), '2.weight': Count(kept=8, total=80)}
    """
    if not 0 < density <= 1:
        raise invalid("dataset_option", f"density={density}", "a number above 0, up to 1")
    check_whole(inputs=inputs, hidden=hidden, classes=classes)
    draw = generator(seed, "planted", "teacher")
    params: dict[str, Tensor] = {}
    masks: dict[str, Tensor] = {}
    for layer, (into, out) in (("0", (inputs, hidden)), ("2", (hidden, classes))):
        kept = max(1, round(density * into))
        mask = torch.zeros(out, into, dtype=torch.bool)
        mask.scatter_(1, torch.rand(out, into, generator=draw).argsort(1)[:, :kept], True)
        params[f"{layer}.weight"] = torch.randn(out, into, generator=draw) * mask / kept**0.5
        params[f"{layer}.bias"] = torch.zeros(out)
        masks[f"{layer}.weight"] = mask
    return Ticket(params, {}, masks)


def read_planted(
    inputs: int = 40, hidden: int = 20, classes: int = 4, density: float = 0.1, examples: int = 12_000, seed: int = 0
) -> Dataset:
    """Gaussian inputs (n, inputs), and the class that `planted_teacher` with these arguments assigns to them.

    Each class's logit is centred over the examples, so that no class is rare. Validation and test get a sixth of the
    examples each.
    """
    teacher = planted_teacher(inputs, hidden, classes, density, seed)
    check_whole(60, examples=examples)
    x = torch.randn(examples, inputs, generator=generator(seed, "planted", "inputs"))
    logits = torch.relu(x @ teacher.params["0.weight"].T) @ teacher.params["2.weight"].T
    y = ((logits - logits.mean(0)) / logits.std(0).clamp(min=1e-6)).argmax(1)
    part = examples // 6
    return from_tensors("planted", (x[part:], y[part:]), (x[:part], y[:part]), val=part, classes=classes)
