"""Whole trainings whose masks change on the way, updates included, against density.

    lthfunc benchmark dynamic --network lenet300 --density 0.1

SET and RigL on the sparse engine, beside a fixed mask of the same density on it, a dense training on the compiled
engine, and plain PyTorch loops with masks: dense products, and for RigL the dense gradient that they have anyway. Each
timing is a training of so many steps from its beginning, in turns; as in `lthfunc prune --method rigl`, masks change in
its first three quarters, here after every hundredth step.
``--scale`` trains a network of 10⁹ weights instead (dynamic_scale.py).
The lower bound is the surviving FLOPs at the peak rate. Nerva, where its Python module is installed, trains the MLPs
by SET with momentum (nerva_peer.py). SparseProp has fixed masks (`lthfunc benchmark sparse`).
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.deployment.timing import seconds_of
from lthfunc.errors import invalid
from lthfunc.experiments.functions import growth_of
from lthfunc.experiments.methods.during_training import exchanges
from lthfunc.sparsify.allocation import Allocate
from lthfunc.training.batches import batches
from lthfunc.training.cpu_threads import using_threads
from lthfunc.training.trainer import make_trainer
from lthfunc.trees.ops import scaled
from lthfunc.trees.types import Batch, TrainState

from . import dynamic_scale, nerva_peer, peers
from .floors import PEAK, peak_rate, products
from .networks import Case, cases, images
from .records import Options, Record, checked_densities, chosen, header, record, saying, script, speedup, write

#: Takes a training of so many steps.
Training = Callable[[int], Any]
#: Of records.
SET, RIGL, FIXED, DENSE = "lthfunc, sparse, SET", "lthfunc, sparse, RigL", "lthfunc, sparse, fixed", "lthfunc, compile"
PLAIN_SET, PLAIN_RIGL, NERVA_SET = "PyTorch, masks, SET", "PyTorch, masks, RigL", "Nerva, momentum, SET"
DENSE_ENGINE = "compile"
NETWORKS = ("lenet300", "lenet5", "conv4", "resnet20", "mlp")
DENSITIES = (0.2, 0.1, 0.05, 0.02, 0.01)
#: Steps of a training; fewer of networks whose dense steps take long.
_STEPS = {"lenet300": 1000, "lenet5": 1000}
_LONG = 300
#: Steps between updates, the share of a training in which masks change, and that of weights (Evci et al. 2020, sec. 4).
_EVERY, _CHANGING, _DROP = 100, 0.75, 0.3
_READY = 64
#: How densities are shared out among layers; the first by default, as `lthfunc prune --method rigl` does.
ALLOCATIONS: dict[str, Allocate] = {"erk": lf.erk(), "uniform": lf.uniform()}
_ALLOCATE = next(iter(ALLOCATIONS))


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write. Raises UserError for what cannot be measured."""
    options = Options("dynamic", __doc__)
    options.networks(f"one of {', '.join(NETWORKS)} (all)")
    options.densities("0.2 … 0.01")
    options.add("--steps", type=int, help="of a training (1000 of the LeNets, 300 of others)")
    options.add("--allocate", help=f"density of layers: {' or '.join(ALLOCATIONS)} ({_ALLOCATE})")
    options.add("--every", type=int, default=_EVERY, help=f"steps between two updates ({_EVERY})")
    options.threads()
    options.add("--repeats", type=int, default=5, help="timings of each (5)")
    options.add("--scale", action="store_true", help="SET and RigL on 10⁶ of 10⁹ weights instead, without dense trees")
    options.json()
    run(**options.parsed(arguments))


def run(
    *, networks: Sequence[str], densities: Sequence[float] | None, steps: int | None, every: int, threads: int,
    repeats: int, json: str | None, scale: bool = False, allocate: str | None = None,
) -> list[Record]:  # fmt: skip
    """Measure, print, and write JSON where asked to."""
    names = chosen(networks, NETWORKS, NETWORKS, threads)
    for option, number in (("--every", every), ("--repeats", repeats)):
        if number < 1:
            raise invalid(option, number, "a whole number of at least 1")
    if scale and (networks or densities or allocate is not None):
        raise invalid("--scale", "with --network, --density or --allocate", "a network and a density of its own")
    allocation = _ALLOCATE if allocate is None else allocate
    if allocation not in ALLOCATIONS:
        raise invalid("--allocate", allocation, " or ".join(ALLOCATIONS))
    chosen_densities = checked_densities(densities, DENSITIES)
    lf.keep_freed_memory()
    records = list[Record]()
    with using_threads(threads):
        if scale:
            about = {"network": "-".join(map(str, dynamic_scale.SIDES)), "batch": dynamic_scale.BATCH, "device": "cpu",
                     "threads": threads, "precision": "fp32", "every": every, "unit": "steps/s"}  # fmt: skip
            records = dynamic_scale.measured(steps or 5 * every // 2, every, repeats, about)
        for name in () if scale else names:
            case, count = _case(name), steps or _STEPS.get(name, _LONG)
            if count < _fewest(every):
                raise invalid("--steps", count, f"{_fewest(every)} or more, so that masks change")
            about = {"network": name, "batch": case.batch, "device": "cpu", "threads": threads, "precision": "fp32",
                     "steps": count, "every": every, "allocate": allocation, "unit": "steps/s"}  # fmt: skip
            records += _measured(case, chosen_densities, count, every, repeats, about)
    if json is not None:
        write(json, header("dynamic", "lthfunc benchmark dynamic", "cpu", threads), records)
    return records


def _fewest(every: int) -> int:
    """Steps of a training in which masks change once."""
    return int((every + 0.5) / _CHANGING) + 1


def _end(steps: int) -> int:
    """The step of a training from which its masks stay."""
    return round(_CHANGING * steps)


def _case(name: str) -> Case:
    if name != "mlp":
        return cases()[name]
    shape = (3, 32, 32)
    module = nn.Sequential(
        nn.Flatten(), nn.Linear(3072, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 10)
    )
    return Case(name, lambda: lf.from_module(module, name=name), shape, 60)


def _measured(
    case: Case, densities: Sequence[float], steps: int, every: int, repeats: int, about: dict[str, Any]
) -> list[Record]:
    states = {density: _ticket(case, density, ALLOCATIONS[about["allocate"]]) for density in densities}
    variants = _variants(case, states, every, about["threads"])
    rates: dict[tuple[str, float], list[float]] = {key: [] for key in variants}
    for key, train in variants.items():
        saying(_title(case, key))("first steps")
        train(_fewest(every) if key[0] in (SET, RIGL) else 2)  # compiles, touches memory, and changes masks once
    for number in range(repeats):
        for key, train in variants.items():
            saying(_title(case, key))(f"training {number + 1} of {repeats}, {steps} steps")
            rates[key].append(steps / seconds_of(partial(train, steps), "cpu"))
    records = [record(found, variant=name, density=density, **about) for (name, density), found in rates.items()]
    peak = peak_rate("cpu") / products(case.model, torch.rand(case.batch, *case.shape))[1]
    for density, state in states.items():
        left = lf.cost(case.model, state.params, state.masks, case.shape)
        records.append(record([peak * left.flops / left.effective_flops], variant=PEAK, density=density, **about))
    _tell(case, rates)
    return records


def _title(case: Case, variant: tuple[str, float]) -> str:
    return f"{case.name}, {variant[0]} at {variant[1]:g}"


def _tell(case: Case, rates: dict[tuple[str, float], list[float]]) -> None:
    print(case.name)
    if case.name in nerva_peer.NETWORKS and not nerva_peer.is_installed():
        print(nerva_peer.HOW)
    for (name, density), found in rates.items():
        line = f"{density:>6g}  {name:<24}{statistics.median(found):10.1f} steps/s"
        line += f"{speedup(found, rates[DENSE, 1.0]):8.2f} × dense"
        if (FIXED, density) in rates:
            line += f"{speedup(found, rates[FIXED, density]):7.3f} × fixed"
        print(line)


def _variants(
    case: Case, states: Mapping[float, TrainState], every: int, threads: int
) -> dict[tuple[str, float], Training]:
    """Plain loops take the same time at every density, and are measured at one."""
    data = images(case, "cpu")
    found: dict[tuple[str, float], Training] = {(DENSE, 1.0): _fit(case, data, DENSE_ENGINE, lf.init(case.model))}
    ready = [(scaled(x, data.scale), y) for x, y in batches(data.train, case.batch, 0, 0, _READY)]
    for density, state in states.items():
        found[FIXED, density] = _fit(case, data, lf.sparse_engine, state)
        found[SET, density] = _fit(case, data, lf.sparse_engine, state, "random", every)
        found[RIGL, density] = _fit(case, data, lf.sparse_engine, state, "gradient", every)
        if case.name in nerva_peer.NETWORKS and nerva_peer.is_installed():
            share = partial(lf.cosine_drop_fraction, _DROP)
            found[NERVA_SET, density] = nerva_peer.training(state, ready, every, _end, share, threads)
    density, state = next(iter(states.items()))
    for name, by_gradient in ((PLAIN_SET, False), (PLAIN_RIGL, True)):
        found[name, density] = partial(_plain, case, state, ready, by_gradient, every)
    return found


def _ticket(case: Case, density: float, allocate: Allocate) -> TrainState:
    return lf.prune(density=density, score=lf.random_scores(0), allocate=allocate)(lf.init(case.model))


def _fit(
    case: Case, data: lf.Dataset, engine: Any, state: TrainState, growth: str | None = None, every: int = _EVERY
) -> Training:
    """Our training. growth: what decides which weights grow; None: the masks stay."""
    trainer = make_trainer(case.model, data, optimizer=lf.adam(peers.LR), batch_size=case.batch, engine=engine)

    def train(steps: int) -> None:
        updates = None
        if growth is not None:
            end = _end(steps)
            share = partial(lf.cosine_drop_fraction, _DROP, end=end)
            updates = exchanges(trainer, tuple(range(every, end, every)), growth_of(growth), share)
        lf.fit(trainer, state, seed=0, until=steps, eval_every=steps, updates=updates)

    return train


def _plain(case: Case, state: TrainState, ready: Sequence[Batch], by_gradient: bool, every: int, steps: int) -> None:
    """Somebody's loop: dense products of masked weights; gradients and weights are masked in place."""
    module = peers.loaded(case.model, state)
    weights = [(leaf, state.masks[name].clone()) for name, leaf in module.named_parameters() if name in state.masks]
    optimizer = torch.optim.Adam(module.parameters(), peers.LR, fused=True)
    end = _end(steps)
    for step in range(1, steps + 1):
        x, y = ready[step % len(ready)]
        optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        with torch.no_grad():
            if step % every == 0 and step < end:  # instead of a step of the optimiser, as in RigL
                share = lf.cosine_drop_fraction(_DROP, step, end)
                for leaf, mask in weights:
                    _exchange(leaf, mask, share, optimizer, by_gradient)
                continue
            for leaf, mask in weights:
                assert leaf.grad is not None
                leaf.grad.mul_(mask)
            optimizer.step()


def _exchange(leaf: Tensor, mask: Tensor, share: float, optimizer: torch.optim.Optimizer, by_gradient: bool) -> None:
    kept = int(mask.sum())
    moved = round(share * kept)
    left = torch.topk(torch.where(mask, leaf.abs(), -1.0).flatten(), kept - moved).indices
    fewer = torch.zeros_like(mask.flatten()).scatter_(0, left, True)
    assert leaf.grad is not None
    promise = leaf.grad.abs().flatten() if by_gradient else torch.rand(leaf.numel())
    grown = torch.topk(promise.masked_fill_(fewer, -1.0), moved).indices
    mask.copy_(fewer.scatter(0, grown, True).view_as(mask))
    leaf.mul_(fewer.view_as(leaf))
    for moment in ("exp_avg", "exp_avg_sq"):
        optimizer.state[leaf][moment].mul_(fewer.view_as(leaf))


if __name__ == "__main__":
    sys.exit(script(main))
