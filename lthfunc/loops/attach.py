"""Attach a plan of pruning to a module and the optimiser of somebody's training loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lthfunc.argument_hints import described
from lthfunc.arguments import public
from lthfunc.distributed.collectives import SINGLE_RANK, Collectives, collectives
from lthfunc.errors import ArgumentError, UserError
from lthfunc.loops.attached import Attached
from lthfunc.loops.loop import Loop
from lthfunc.loops.optimizer_checkpoints import keep_in_optimizer, taken_from_optimizer
from lthfunc.loops.plans import LoopPlan, Rewind, checked_plan
from lthfunc.loops.torch_optimizers import owned, within
from lthfunc.tracebacks import is_library_function
from lthfunc.trees.prunable import default_prunable, select_prunable


@public
def attach(
    module: nn.Module,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
    plan: LoopPlan,
    *,
    rewind: Rewind | None = None,
    anchor_step: int = 0,
    scheduler: Any = None,
    prune_only: Sequence[str] = (),
    never_prune: Sequence[str] = (),
    ranks: Collectives | None = None,
    state_dict: Mapping[str, Any] | None = None,
    save_with_optimizer: bool = False,
) -> Attached:
    """Prune a module within any PyTorch training loop, which stays as it is.

    Pruned weights, their gradients and, in state_dicts, their moments are zero from then on, whatever the optimiser.
    Its own hooks tell of its steps; nothing else of the loop is looked at, and `Attached.detach` leaves nothing behind.

    module: whose linear, convolution, embedding, recurrent and attention weights are pruned; prune_only, never_prune:
    name patterns of the only ones, and of those to exclude. optimizer: of `torch.optim`, or any subclass of its
    Optimizer, which owns those weights; or a list of several, in the order in which they step. plan: what each
    `next_round()` does to the network, a transformation such as ``lf.prune(fraction=0.2)``; or a list of (step,
    transformation), each of which happens by itself once the optimiser has taken so many steps, the first at 0. One
    that also takes an argument ``gradient`` gets the dense gradient of all prunable weights in that step. rewind:
    (pruned network, anchor) -> what trains next, such as `lf.rewound`, at the end of each round; without it training
    continues. anchor_step: the step whose state is the anchor. scheduler: a learning-rate schedule, or a list of them,
    that returns to the anchor's step as well. ranks: those that train this module, whose masks are checked to be equal;
    by default those of DistributedDataParallel. state_dict: an `Attached.state_dict` to continue from, where the module
    has the weights of that checkpoint already. save_with_optimizer: whether the optimiser's own state_dict holds that
    of `Attached`, for a trainer whose checkpoints have no other place for it.

    Returns an `Attached`. Raises UserError for an optimiser without those weights, and for a plan that cannot work on
    this network.

    >>> net = nn.Linear(4, 2)
    >>> optimizer = torch.optim.Adam(net.parameters())
    >>> attached = lf.attach(net, optimizer, lf.prune(fraction=0.5), rewind=lf.rewound)
    >>> net(torch.ones(3, 4)).sum().backward(); optimizer.step()
    >>> attached.next_round()
    Count(kept=4, total=8)
    """
    optimizers = tuple(map(within, _listed(optimizer)))
    if not optimizers:
        raise ArgumentError("attach: optimizer must be a torch.optim.Optimizer, or several, not an empty list")
    module, ranks = _unwrapped(module, ranks)
    params = {name: leaf for name, leaf in module.named_parameters() if leaf.requires_grad}
    default = default_prunable(module, params)
    if not default and not prune_only:
        raise UserError(f"attach: {type(module).__name__} has no trained weight to prune; name some by prune_only=[…]")
    prunable = select_prunable(params, default, prune_only, never_prune)
    mine = owned(optimizers)
    for name, leaf in params.items():
        if any(map(is_library_function, (leaf._post_accumulate_grad_hooks or {}).values())):
            raise UserError(f"attach: {name} is attached already; call detach() on what attach returned before")
    for name in prunable:
        if id(params[name]) not in mine:
            raise UserError(f"attach: optimizer does not own {name}; give its own, or never_prune=[{name!r}]")
        if hasattr(params[name], "device_mesh"):
            raise UserError(f"attach: {name} is in shards, which masks can't be held on; lf.prune_sharded prunes those")
    for name, part in module.named_modules():
        if type(part).__name__ == "SparseModule" and is_library_function(type(part)):
            raise UserError(
                "attach: module is an lf.sparse_module, which has masks of its own; change them by set_masks"
            )
        if getattr(part, "sparse", False) is True:
            raise UserError(f"attach: {name} has sparse gradients, which can't be masked; use sparse=False")
    schedulers = () if scheduler is None else tuple(_listed(scheduler))
    for each in schedulers:
        if not hasattr(each, "load_state_dict"):
            raise ArgumentError(f"attach: scheduler must have a state_dict, as torch's do, not {described(each)}")
    loop = Loop(module, params, prunable, optimizers, schedulers, ranks or SINGLE_RANK)
    if save_with_optimizer:
        state_dict = taken_from_optimizer(optimizers[0]) or state_dict
    attached = Attached(loop, checked_plan("attach", plan), rewind, anchor_step, state_dict)
    if save_with_optimizer:
        attached.handles += keep_in_optimizer(optimizers[0], attached)
    return attached


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else [value]


def _unwrapped(module: nn.Module, ranks: Collectives | None) -> tuple[nn.Module, Collectives | None]:
    """The module within those of DistributedDataParallel and torch.compile, whose parameters it shares; its ranks."""
    if isinstance(module, nn.parallel.DistributedDataParallel):
        return _unwrapped(module.module, ranks or collectives(module.process_group))
    inner = module.module if isinstance(module, nn.DataParallel) else getattr(module, "_orig_mod", None)
    return _unwrapped(inner, ranks) if isinstance(inner, nn.Module) else (module, ranks)
