"""Trainings on survivors alone, many steps a launch: one program (thread block) for each network of linear layers.

A program holds its network's survivors, moments and lists by being the only one that reads and writes them. They lie
packed in global memory: of 3.6 % of LeNet-300-100, 9,600 survivors, 115 KB with Adam's moments, and as much again of
lists, which its multiprocessor's first-level cache can keep, and else the second. Triton has no shared memory that a
program may index, so nothing guarantees where they stay; and activations and their gradients (1,604 rows of 64 lanes:
410 KB) don't fit beside them. What is sure: no other program touches them, no launch and no wait of the host lies
between steps, and work and memory are those of survivors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lthfunc.errors import UserError
from lthfunc.sparse.gpu import triton_calls
from lthfunc.sparse.gpu.triton_calls import check, kernels
from lthfunc.sparse.updates import moments_of, state_after
from lthfunc.training.optimizers import AdamNumbers, AdamState, Optimizer, SGDNumbers
from lthfunc.trees.types import TrainState

#: Numbers of a tile, of which each thread has four, and those updated at a time; a program's warps, and registers that
#: each thread may have: a program has a multiprocessor to itself.
_TILE, _UPDATED, _WARPS, _REGISTERS = 2048, 2048, 16, 128
#: Examples of a batch that a program can have as lanes.
_MOST_LANES = 1024


class Lists(NamedTuple):
    """Where survivors are, of K networks, int32. starts, starts_back: by output and by input of each layer; columns:
    inputs of the survivors, row after row; which, rows: column after column, their numbers in that order and outputs.
    """

    starts: Tensor
    starts_back: Tensor
    columns: Tensor
    which: Tensor
    rows: Tensor


class Resident(NamedTuple):
    """K networks, packed for `resident_steps`.

    values, and each of moments: float32 (K, size), biases and then survivors, padded with zeros. lists: where survivors
    are. table: int32 (layers, 6), what the kernel knows of layers, and shapes: (inputs, outputs) of each. schedule:
    float32 (K, steps), rates. powers: float64 (K, 2), Adam's betas to the power of the step that comes next. steps:
    int64 (K,), how many each has taken. numbers: the optimiser's. states: what the networks were when packed.
    """

    values: Tensor
    moments: tuple[Tensor, ...]
    lists: Lists
    table: Tensor
    shapes: tuple[tuple[int, int], ...]
    schedule: Tensor
    powers: Tensor
    steps: Tensor
    numbers: SGDNumbers | AdamNumbers
    states: tuple[TrainState, ...]


def pack_resident(states: Sequence[TrainState], optimizer: Optimizer) -> Resident:
    """Networks of one kind, each with its own masks, made ready for `resident_steps`. No state changes.

    states: of networks of linear layers (two or more) with biases and a ReLU between each two, such as LeNet-300-100:
    params in the order of the layers, each a weight (outputs, inputs) and its bias (outputs,), float32. What lies
    between layers can't be seen in params: that it is ReLUs is the caller's word. A weight without a mask stays whole.
    optimizer: `lf.sgd`, `lf.adam` or `lf.adamw`; the states' own, or theirs that have none yet.

    Raises UserError for another kind of network, params or optimiser, and networks whose shapes differ.
    """
    if optimizer.numbers is None:
        raise UserError("optimizer: takes lf.sgd, lf.adam or lf.adamw")
    if not states:
        raise UserError("states: takes one network or more")
    shapes = _shapes(states[0])
    for state in states[1:]:
        if _shapes(state) != shapes:
            raise UserError("states: their networks have different shapes")
    opts = [state.opt if state.opt != () else optimizer.init(state.params) for state in states]
    lists, table = _lists(states, shapes)
    powers = [opt.powers if isinstance(opt, AdamState) else torch.ones(2, dtype=torch.float64) for opt in opts]
    moments = zip(*(moments_of(opt) for opt in opts), strict=True)
    rates = [opt.schedule for opt in opts]
    longest = max(map(len, rates))
    return Resident(
        _vectors(states, [state.params for state in states], table),
        tuple(_vectors(states, trees, table) for trees in moments),
        lists,
        table,
        tuple(shapes),
        torch.stack([torch.cat([each, each[-1:].expand(longest - len(each))]) for each in rates]).float(),
        torch.stack([each.to(rates[0].device) for each in powers]),
        torch.stack([state.step for state in states]),
        optimizer.numbers,
        tuple(state._replace(opt=opt) for state, opt in zip(states, opts, strict=True)),
    )


def unpack_resident(resident: Resident) -> list[TrainState]:
    """The networks' states again: dense leaves, zeros where weights were pruned, moments too."""
    found = []
    for network, (state, step) in enumerate(zip(resident.states, resident.steps.unbind(), strict=True)):
        params = _trees(resident.values[network], state, resident.table)
        moments = [_trees(each[network], state, resident.table) for each in resident.moments]
        opt = state_after(state.opt, moments, resident.powers[network])
        found.append(state._replace(params=params, opt=opt, step=step.clone()))
    return found


def resident_steps(resident: Resident, x: Tensor, y: Tensor) -> tuple[Resident, Tensor]:
    """Train each network a step on each of the batches, by cross-entropy, all in one launch of K programs.

    x: float32 (steps, n, inputs), one batch for each step, the same for all networks, or (K, steps, n, inputs), each
    network's own; inputs may have more dimensions. y: int64 (steps, n) or (K, steps, n), classes. n is at most 1024.

    Returns (the networks after these steps, their losses, float32 (K, steps)); no argument changes. The host waits for
    nothing, so that a CUDA graph may hold it. The update is
    `lf.sgd`'s, `lf.adam`'s or `lf.adamw`'s, formula for formula; sums are in float32, in an order of their own (a
    row's survivors one after the other), always the same. So it equals the CPU's sparse engine within rounding.
    Raises UserError for shapes, types or devices that don't go together, and where Triton is not installed.

        resident = pack_resident([ticket.to_state() for ticket in tickets], lf.adam(1.2e-3))
        resident, losses = resident_steps(resident, x, y)
        states = unpack_resident(resident)
    """
    kernel = kernels("resident").steps
    triton_calls.check_device("resident_steps", x)
    networks, layers = len(resident.values), len(resident.shapes)
    inputs, classes = resident.shapes[0][0], resident.shapes[-1][1]
    lead = tuple(y.shape[:-2])
    if y.ndim < 2 or lead not in ((), (networks,)):
        raise UserError(f"y: takes (steps, n) or ({networks}, steps, n), not {tuple(y.shape)}")
    count, examples = y.shape[-2:]
    check("y", y, tuple(y.shape), (torch.int64,), resident.values)
    x = x.flatten(y.ndim) if x.ndim > y.ndim else x
    check("x", x, (*lead, count, examples, inputs), (torch.float32,), resident.values)
    if not 1 <= examples <= _MOST_LANES:
        raise UserError(f"y: takes batches of 1 to {_MOST_LANES} examples, not {examples}")
    lanes = max(triton_calls.side(examples, _MOST_LANES), 16)
    tiled = F.pad(x.transpose(-1, -2), (0, lanes - examples)).contiguous()
    targets = F.pad(y, (0, lanes - examples)).int().contiguous()
    values = resident.values.clone()
    moments = tuple(each.clone() for each in resident.moments)
    mean, variance = (*moments, values, values)[:2]
    features, size = sum(outputs for _, outputs in resident.shapes), values.shape[1]
    losses, gradients = values.new_empty(networks, count), torch.zeros_like(values)
    outputs, grads = values.new_empty(2, networks, features * lanes)
    rates, powers = _rates(resident, count)
    lists, numbers = resident.lists, resident.numbers
    if isinstance(numbers, AdamNumbers):
        kind, (beta1, beta2), epsilon, momentum = "adam", numbers.betas, numbers.eps, 0.0
        decayed = "" if not numbers.weight_decay else "decoupled" if numbers.decoupled else "l2"
    else:
        kind = "nesterov" if numbers.nesterov else "momentum" if numbers.momentum else "sgd"
        beta1 = beta2 = epsilon = 0.0
        momentum, decayed = numbers.momentum, "l2" if numbers.weight_decay else ""
    with triton_calls.on(x.device):
        kernel[(networks,)](
            tiled, targets, values, mean, variance, gradients, outputs, grads, losses, rates,
            resident.table, lists.starts, lists.columns, lists.starts_back, lists.which, lists.rows,
            layers, size, count, examples, classes, tiled.stride(0) if lead else 0, inputs * lanes,
            count * lanes if lead else 0, lists.starts.shape[1], lists.starts_back.shape[1], lists.columns.shape[1],
            features, 1 - beta1, beta2, 1 - beta2, epsilon, float(momentum), float(numbers.weight_decay),
            kind=kind, decayed=decayed, block_lanes=lanes, block_rows=max(1, _TILE // lanes),
            block_classes=1 << (classes - 1).bit_length(), block_update=_UPDATED,
            num_warps=_WARPS, num_stages=1, maxnreg=_REGISTERS,
        )  # fmt: skip
    return resident._replace(values=values, moments=moments, powers=powers, steps=resident.steps + count), losses


def _shapes(state: TrainState) -> list[tuple[int, int]]:
    """(inputs, outputs) of each layer."""
    leaves = list(state.params.items())
    found: list[tuple[int, int]] = []
    for (name, weight), (_, bias) in zip(leaves[::2], leaves[1::2], strict=len(leaves) % 2 == 0):
        fits = weight.ndim == 2 and tuple(bias.shape) == (weight.shape[0],) and weight.dtype == torch.float32
        if len(leaves) % 2 or not fits or (found and weight.shape[1] != found[-1][1]) or state.buffers:
            raise UserError(f"states: takes float32 linear layers with biases alone, one after the other; see {name!r}")
        found.append((weight.shape[1], weight.shape[0]))
    if len(found) < 2:
        raise UserError("states: takes networks of two linear layers or more")
    return found


def _masks(state: TrainState) -> list[Tensor]:
    """Of each layer's weight."""
    weights = list(state.params.items())[::2]
    return [state.masks.get(name, torch.ones_like(leaf, dtype=torch.bool)).bool() for name, leaf in weights]


def _lists(states: Sequence[TrainState], shapes: Sequence[tuple[int, int]]) -> tuple[Lists, Tensor]:
    masks = [_masks(state) for state in states]
    most = [max(int(each[layer].sum()) for each in masks) for layer in range(len(shapes))]
    table, at = [], [0, 0, 0, 0]
    for (inputs, outputs), room in zip(shapes, most, strict=True):
        table.append([inputs, outputs, *at])
        at = [begun + more for begun, more in zip(at, (outputs, outputs + 1, inputs + 1, room), strict=True)]
    parts: list[list[Tensor]] = [[] for _ in Lists._fields]
    for each in masks:
        for mask, room in zip(each, most, strict=True):
            rows, columns = mask.nonzero().unbind(1)
            order = torch.argsort(columns, stable=True)
            filled = (F.pad(part, (0, room - len(part))) for part in (columns, order, rows[order]))
            starts = (F.pad(mask.sum(axis).cumsum(0), (1, 0)) for axis in (1, 0))
            for collected, part in zip(parts, (*starts, *filled), strict=True):
                collected.append(part.int())
    found = Lists(*(torch.cat(each).view(len(states), -1) for each in parts))
    return found, torch.tensor(table, dtype=torch.int32, device=found.starts.device)


def _vectors(states: Sequence[TrainState], trees: Sequence[dict[str, Tensor]], table: Tensor) -> Tensor:
    """(K, size): each tree's biases, then what survives of its weights, with room for the network with most."""
    ends = [*table[1:, 5].tolist(), None]
    found = []
    for state, tree in zip(states, trees, strict=True):
        leaves = [tree[name] for name in state.params]
        parts = [bias.float() for bias in leaves[1::2]]
        for mask, weight, begin, end in zip(_masks(state), leaves[::2], table[:, 5].tolist(), ends, strict=True):
            kept = weight[mask].float()
            parts.append(kept if end is None else F.pad(kept, (0, end - begin - len(kept))))
        found.append(torch.cat(parts))
    longest = max(map(len, found))
    return torch.stack([F.pad(each, (0, longest - len(each))) for each in found])


def _trees(vector: Tensor, state: TrainState, table: Tensor) -> dict[str, Tensor]:
    names, found = list(state.params), {}
    features = int(table[:, 1].sum())
    for mask, weight, bias, line in zip(_masks(state), names[::2], names[1::2], table.tolist(), strict=True):
        _, outputs, bias_at, _, _, entries_at = line
        dense, begin = torch.zeros_like(state.params[weight]), features + entries_at
        dense[mask] = vector[begin : begin + int(mask.sum())].to(dense.dtype)
        found[weight], found[bias] = dense, vector[bias_at : bias_at + outputs].clone()
    return found


def _rates(resident: Resident, count: int) -> tuple[Tensor, Tensor]:
    """(float32 (K, count, 3): each step's rate, that times Adam's first correction, the second; the powers then)."""
    schedule, powers = resident.schedule, resident.powers
    ahead = resident.steps[:, None] + torch.arange(count, device=schedule.device)
    rate = schedule.gather(1, ahead.clamp(max=schedule.shape[1] - 1))
    if not isinstance(resident.numbers, AdamNumbers):
        return torch.stack([rate, rate, rate], -1), powers
    betas = (torch.full_like(powers[:, :1], beta).expand(-1, count) for beta in resident.numbers.betas)
    # One power after the other, as steps taken one by one have them.
    each = torch.cat([powers[:, None], torch.stack(list(betas), -1)], 1).cumprod(1)
    first, second = 1 / (1 - each[:, :-1, 0]), 1 / (1 - each[:, :-1, 1]).sqrt()
    return torch.stack([rate, rate * first.float(), second.float()], -1), each[:, -1]
