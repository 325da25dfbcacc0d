"""How others train masked networks: each a function that takes n steps on ready batches."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import lthfunc as lf
from lthfunc.deployment.timing import TimedFunction
from lthfunc.training.precision import Precision, autocast_for, matmul_precision
from lthfunc.trees.types import Batch, TrainState

from .graphed import graphed

LR = 1.2e-3


def loaded(model: lf.Model, state: TrainState) -> nn.Module:
    module = copy.deepcopy(model.training).to(state.step.device).requires_grad_(True)
    module.load_state_dict({**state.params, **state.buffers})
    return module


def argparse_script(model: lf.Model, state: TrainState, ready: Sequence[Batch]) -> TimedFunction:
    """The argparse script that this library replaces, with unfused Adam.

    After each backward pass it copies every weight and gradient to NumPy, sets gradients of weights near zero to zero,
    and copies them back.
    """
    module = loaded(model, state)
    optimizer = torch.optim.Adam(module.parameters(), LR, weight_decay=1e-4)

    def run(n: int) -> None:
        for i in range(n):
            x, y = ready[i % len(ready)]
            optimizer.zero_grad()
            F.cross_entropy(module(x), y).backward()
            for name, parameter in module.named_parameters():
                if "weight" in name and parameter.grad is not None:
                    weight, grad = parameter.data.cpu().numpy(), parameter.grad.data.cpu().numpy()
                    frozen = np.where(np.abs(weight) < 1e-6, 0, grad)
                    parameter.grad.data = torch.from_numpy(frozen).to(parameter.device)
            optimizer.step()

    return run


def nn_utils_prune(model: lf.Model, state: TrainState, ready: Sequence[Batch]) -> TimedFunction:
    """PyTorch's own pruning: reparametrised weights, autograd, fused Adam."""
    module = loaded(model, state)
    for name, mask in state.masks.items():
        owner, _, leaf = name.rpartition(".")
        torch_prune.custom_from_mask(module.get_submodule(owner), leaf, mask)
    return trained(module, ready)


def trained(module: nn.Module, ready: Sequence[Batch]) -> TimedFunction:
    """Any module, by autograd and fused Adam."""
    optimizer = torch.optim.Adam(module.parameters(), LR, fused=True)

    def run(n: int) -> None:
        for i in range(n):
            x, y = ready[i % len(ready)]
            optimizer.zero_grad()
            F.cross_entropy(module(x), y).backward()
            optimizer.step()

    return run


def tuned_loop(model: lf.Model, state: TrainState, ready: Sequence[Batch], precision: Precision) -> TimedFunction:
    """A dense network trained fast without this library: channels last, torch.compile with little overhead (CUDA
    graphs on a GPU), fused Adam.
    """
    module = loaded(model, state).to(memory_format=torch.channels_last)
    program = torch.compile(module, mode="reduce-overhead")
    optimizer = torch.optim.Adam(module.parameters(), LR, fused=True)
    images = [(x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x, y) for x, y in ready]

    def run(n: int) -> None:
        with matmul_precision(precision):
            for i in range(n):
                x, y = images[i % len(images)]
                torch.compiler.cudagraph_mark_step_begin()
                optimizer.zero_grad()
                with autocast_for(precision, x.device):
                    loss = F.cross_entropy(program(x), y)
                loss.backward()
                optimizer.step()

    return run


def graphed_loop(model: lf.Model, state: TrainState, ready: Sequence[Batch], precision: Precision) -> TimedFunction:
    """The same, with the whole step, including the optimiser, as one captured graph on a GPU."""
    module = loaded(model, state).to(memory_format=torch.channels_last)
    program = torch.compile(module)
    optimizer = torch.optim.Adam(module.parameters(), LR, fused=True, capturable=True)
    images = [(x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x, y) for x, y in ready]
    x, y = (part.clone() for part in images[0])

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        with autocast_for(precision, x.device):
            loss = F.cross_entropy(program(x), y)
        loss.backward()
        optimizer.step()

    with matmul_precision(precision):
        call = graphed(step, x.device)

    def run(n: int) -> None:
        for i in range(n):
            given = images[i % len(images)]
            x.copy_(given[0])
            y.copy_(given[1])
            call()

    return run


def ensemble(
    model: lf.Model, states: Sequence[TrainState], ready: Sequence[Batch], precision: Precision
) -> TimedFunction:
    """Several masked networks as PyTorch's own tools train them: vmapped, compiled for graphs, fused Adam over all."""
    names = list(states[0].params)
    params = {name: torch.stack([state.params[name] for state in states]).requires_grad_(True) for name in names}
    masks = {name: torch.stack([state.masks[name] for state in states]) for name in states[0].masks}
    optimizer = torch.optim.Adam(params.values(), LR, fused=True, capturable=params[names[0]].is_cuda)

    def loss(params: lf.Params, x: Tensor, y: Tensor) -> Tensor:
        with autocast_for(precision, x.device):
            return F.cross_entropy(torch.func.functional_call(model.training, params, (x,)), y)

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(0, None, None))

    def masked(params: lf.Params, x: Tensor, y: Tensor) -> lf.Params:
        found = gradients(params, x, y)
        return {name: torch.where(masks[name], leaf, 0) if name in masks else leaf for name, leaf in found.items()}

    program = torch.compile(masked, mode="reduce-overhead")

    def run(n: int) -> None:
        with matmul_precision(precision):
            for i in range(n):
                torch.compiler.cudagraph_mark_step_begin()
                for name, leaf in program(
                    {name: leaf.detach() for name, leaf in params.items()}, *ready[i % len(ready)]
                ).items():
                    params[name].grad = leaf
                optimizer.step()

    return run


def naive_compile(model: lf.Model, state: TrainState, ready: Sequence[Batch]) -> TimedFunction:
    """What one writes first: a functional Adam with `pow` in the graph and bool masks, under torch.compile."""

    def step(params: lf.Params, mean: lf.Params, var: lf.Params, t: Tensor, batch: Batch) -> tuple[lf.Params, ...]:
        def loss(params: lf.Params) -> Tensor:
            return F.cross_entropy(torch.func.functional_call(model.training, params, (batch[0],)), batch[1])

        grads = torch.func.grad(loss)(params)
        grads = {n: torch.where(state.masks[n], g, 0.0) if n in state.masks else g for n, g in grads.items()}
        mean = {n: 0.9 * m + 0.1 * grads[n] for n, m in mean.items()}
        var = {n: 0.999 * v + 0.001 * grads[n] ** 2 for n, v in var.items()}
        new = {
            n: p - LR * (mean[n] / (1 - 0.9**t)) / ((var[n] / (1 - 0.999**t)).sqrt() + 1e-8) for n, p in params.items()
        }
        return new, mean, var

    program = torch.compile(step, fullgraph=True)
    params = {name: leaf.clone() for name, leaf in state.params.items()}
    zeros = {name: torch.zeros_like(leaf) for name, leaf in params.items()}
    carry = (params, zeros, {name: leaf.clone() for name, leaf in zeros.items()})
    count = torch.zeros((), device=state.step.device)

    def run(n: int) -> None:
        nonlocal carry, count
        with torch.no_grad():
            for i in range(n):
                count = count + 1
                carry = program(*carry, count, ready[i % len(ready)])

    return run


def pure_step(model: lf.Model, state: TrainState, ready: Sequence[Batch]) -> TimedFunction:
    """Our pure step alone, eagerly, called on ready batches: `torch.func` as it comes."""
    step = lf.make_train_step(model, lf.cross_entropy, lf.adam(LR))

    def run(n: int) -> None:
        nonlocal state
        with torch.no_grad():
            for i in range(n):
                state, _ = step(state, ready[i % len(ready)])

    return run
