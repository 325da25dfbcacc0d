"""Whole groups pruned from trained networks, beside Torch-Pruning: FLOPs, parameters, latency, accuracy.

    lthfunc benchmark groups --network vit --left 0.5

A network is trained; then heads, dimensions of its residual stream and channels are pruned until that share of its
FLOPs is left, by the same score of weights here and there, of which each makes one of groups in its own way, and it is
fine-tuned on the same batches. With ``--multiple N`` each layer keeps a multiple of N channels. Latencies are of the
smaller modules, compiled, in turns. Torch-Pruning prunes in small steps, each by its global ranking, until it is there.
The ResNet-20 has 1×1 convolutions as shortcuts, since it cannot follow padded ones. Of attention it prunes dimensions
of all heads alike, its default, since its global ranking of heads fails in steps that take none.
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.deployment.timing import seconds_of
from lthfunc.errors import UserError, failing_as_options, invalid
from lthfunc.trees.flops import flops_of
from lthfunc.trees.ops import scaled

from .records import Options, Record, chosen, header, record, saying, script, write

NETWORKS = ("resnet20", "vit")
SCORES = ("magnitude", "taylor")
_LR, _BATCH, _SCORED = 1e-3, 60, 10
#: Steps in which Torch-Pruning would prune everything.
_PEER_STEPS = 400


class Attention(nn.Module):
    """Self-attention whose views take their sizes from its layers, as a network has to be written for the peer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, -1)
        out: Tensor = self.out(mixed)
        return out


class Encoder(nn.Module):
    """A pre-norm block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(width), Attention(width, heads), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return out


class VisionTransformer(nn.Module):
    """Blocks of four heads, patches of 1/4 of the side, the mean over patches (Beyer et al. 2022)."""

    def __init__(self, shape: tuple[int, ...], classes: int, width: int = 64, blocks: int = 4) -> None:
        super().__init__()
        side = shape[1] // 4
        self.patches = nn.Conv2d(shape[0], width, side, side)
        draw = torch.Generator().manual_seed(0)  # a network starts with what it was built with
        self.places = nn.Parameter(0.02 * torch.randn(1, 16, width, generator=draw))
        self.blocks = nn.Sequential(*(Encoder(width, 4) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.places
        out: Tensor = self.head(self.norm(self.blocks(x)).mean(1))
        return out


class Basic(nn.Module):
    """Two convolutions beside a shortcut (He et al. 2016, sec. 3.3, option B)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        stride = 1 if inputs == width else 2
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.shortcut = nn.Conv2d(inputs, width, 1, stride) if stride == 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.shortcut(x))


class ResNet20(nn.Module):
    """Three stages of three blocks, 16, 32 and 64 channels wide."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(shape[0], 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        widths = [16, *(width for width in (16, 32, 64) for _ in range(3))]
        self.blocks = nn.Sequential(*(Basic(*pair) for pair in pairwise(widths)))
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.conv(x)))
        out: Tensor = self.head(self.blocks(x).mean((2, 3)))
        return out


_MAKE: dict[str, Callable[[tuple[int, ...], int], nn.Module]] = {"resnet20": ResNet20, "vit": VisionTransformer}


class Small(NamedTuple):
    """A pruned network, fine-tuned. before, after: its test accuracy, before and after that."""

    module: nn.Module
    before: float
    after: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write. Raises UserError for what cannot be measured."""
    options = Options("groups", __doc__)
    options.networks(f"one of {', '.join(NETWORKS)} (both)")
    options.add("--dataset", default="digits", help="digits, mnist or another of `lthfunc datasets` (digits)")
    options.add("--left", type=float, default=0.5, help="the share of FLOPs to leave (0.5)")
    options.add("--multiple", type=int, default=1, help="channels, of which each layer keeps a multiple (1)")
    options.add("--steps", type=int, default=1500, help="of the training (1500)")
    options.add("--tuning", type=int, default=500, help="steps of fine-tuning (500)")
    options.add("--eager", action="store_true", help="time the modules as they are, not compiled")
    options.threads()
    options.add("--repeats", type=int, default=15, help="timings of each (15)")
    options.json()
    run(**options.parsed(arguments))


def run(
    *, networks: Sequence[str], dataset: str, left: float, multiple: int, steps: int, tuning: int, eager: bool,
    threads: int, repeats: int, json: str | None,
) -> list[Record]:  # fmt: skip
    """Measure, print, and write JSON where asked to."""
    names = chosen(networks, NETWORKS, NETWORKS, threads)
    if not 0 < left < 1:
        raise invalid("--left", left, "a number between 0 and 1, both excluded")
    for option, number in (("--multiple", multiple), ("--steps", steps), ("--tuning", tuning), ("--repeats", repeats)):
        if number < 1:
            raise invalid(option, number, "a whole number of at least 1")
    records, before = list[Record](), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with failing_as_options({"name": "--dataset"}):
            data = lf.data.load(dataset)
        for name in names:
            _check(name, data, left, multiple)
        for name in names:
            about = {"network": name, "dataset": dataset, "batch": _BATCH, "device": "cpu", "threads": threads,
                     "precision": "fp32", "multiple": multiple, "unit": "batches/s"}  # fmt: skip
            records += _measured(name, data, left, multiple, steps, tuning, eager, repeats, about)
    finally:
        torch.set_num_threads(before)
    if json is not None:
        write(json, header("groups", "lthfunc benchmark groups", "cpu", threads), records)
    return records


def _check(name: str, data: lf.Dataset, left: float, multiple: int) -> None:
    """Raise UserError, before anything is trained, where groups leave more FLOPs than asked for."""
    model = lf.from_module(_MAKE[name](data.shape, data.classes), name=name, warn=False)
    try:
        _pruned(model, lf.init(model), data, left, multiple, {"score": lf.magnitude})
    except UserError as error:
        option = "--left" if multiple == 1 else "--multiple"
        raise UserError(f"{option}: of {name}, {str(error).partition(': ')[2]} (--left)") from error


def _measured(
    name: str, data: lf.Dataset, left: float, multiple: int, steps: int, tuning: int, eager: bool, repeats: int,
    about: dict[str, Any],
) -> list[Record]:  # fmt: skip
    model = lf.from_module(_MAKE[name](data.shape, data.classes), name=name, warn=False)
    say = saying(name)
    say(f"training, {steps} steps")
    trained = lf.train(model, data, optimizer=lf.adam(_LR), steps=steps)(lf.init(model))
    accuracy = lf.accuracy_on(model, trained, data)
    found = {"dense": Small(lf.to_module(lf.ticket(trained), model).eval(), accuracy, accuracy)}
    for score in SCORES:
        say(f"pruning and fine-tuning by {score}")
        found[f"lthfunc, {score}"] = _ours(model, trained, data, left, multiple, tuning, score)
        if importlib.util.find_spec("torch_pruning") is not None:
            say("the same by Torch-Pruning")
            found[f"Torch-Pruning, {score}"] = _theirs(model, trained, data, left, multiple, tuning, score)
    say(f"timing, {repeats} turns")
    rates = _rates({each: small.module for each, small in found.items()}, data, eager, repeats)
    records = []
    for each, small in found.items():
        flops, numbers = flops_of(small.module, data.shape), sum(leaf.numel() for leaf in small.module.parameters())
        more = {"FLOPs": flops, "parameters": numbers, "accuracy before": small.before, "accuracy": small.after}
        records.append(record(rates[each], variant=each, **about, **more))
    _tell(name, records)
    return records


def _tell(name: str, records: Sequence[Record]) -> None:
    dense = records[0]
    print(f"{name}\n{'':26}{'FLOPs':>8}{'parameters':>12}{'batch, ms':>11}{'× dense':>9}{'before %':>10}{'after %':>9}")
    for each in records:
        share, faster = each["FLOPs"] / dense["FLOPs"], each["median"] / dense["median"]
        line = f"{each['variant']:<26}{100 * share:>7.1f}%{each['parameters']:>12,}{1000 / each['median']:>11.2f}"
        print(f"{line}{faster:>9.2f}{100 * each['accuracy before']:>10.2f}{100 * each['accuracy']:>9.2f}")


def _rates(modules: dict[str, nn.Module], data: lf.Dataset, eager: bool, repeats: int) -> dict[str, list[float]]:
    """Batches a second, timed in turns."""
    x = scaled(data.test.x[:_BATCH], data.scale)
    calls = {each: partial(module if eager else torch.compile(module), x) for each, module in modules.items()}
    found: dict[str, list[float]] = {each: [] for each in calls}
    with torch.inference_mode():
        for call in calls.values():  # compiles
            call()
        for _ in range(repeats):
            for each, call in calls.items():
                found[each].append(1 / statistics.median(seconds_of(call, "cpu") for _ in range(5)))
    return found


def _ours(
    model: lf.Model, trained: lf.TrainState, data: lf.Dataset, left: float, multiple: int, tuning: int, score: str
) -> Small:
    batches = lf.sample_batches(data, _BATCH, count=_SCORED, seed=0)
    how: dict[str, Any] = {
        "magnitude": {"score": lf.magnitude, "reduce": "norm"},
        "taylor": {"score": lf.snip(lf.loss_of(model, trained.buffers), batches), "reduce": "sum"},
    }[score]
    pruned = _pruned(model, trained, data, left, multiple, how)
    pruned = pruned._replace(step=torch.zeros_like(pruned.step))
    tuned = lf.train(model, data, optimizer=lf.adam(_LR), steps=tuning)(pruned)
    small = lf.compact(model, tuned, data.shape)
    return Small(small.model.evaluating, lf.accuracy_on(model, pruned, data), lf.accuracy_on(model, tuned, data))


def _pruned(
    model: lf.Model, trained: lf.TrainState, data: lf.Dataset, left: float, multiple: int, how: dict[str, Any]
) -> lf.TrainState:
    """Pruned to a share of the FLOPs."""
    layers = lf.cost(model, trained.params, trained.masks, data.shape).layers
    costs = {name: layer.flops / layer.total for name, layer in layers.items()}
    groups = lf.dependency_groups(model, data.shape)
    return lf.prune_groups(groups, density=left, costs=costs, multiple=multiple, **how)(trained)


def _theirs(
    model: lf.Model, trained: lf.TrainState, data: lf.Dataset, left: float, multiple: int, tuning: int, score: str
) -> Small:
    import torch_pruning as tp

    module = lf.to_module(lf.ticket(trained), model).eval().requires_grad_(True)
    kinds = {"magnitude": tp.importance.GroupMagnitudeImportance, "taylor": tp.importance.GroupTaylorImportance}
    x = torch.zeros(1, *data.shape)
    heads = {each.qkv: each.heads for each in module.modules() if isinstance(each, Attention)}
    pruner = tp.pruner.BasePruner(
        module, x, importance=kinds[score](), global_pruning=True, pruning_ratio=1.0, max_pruning_ratio=0.95,
        iterative_steps=_PEER_STEPS, ignored_layers=[module.head], num_heads=heads,
        round_to=None if multiple == 1 else multiple,
    )  # fmt: skip
    wanted = left * flops_of(module, data.shape)
    batches = lf.sample_batches(data, _BATCH, count=_SCORED, seed=0)
    for _ in range(_PEER_STEPS):
        if flops_of(module, data.shape) <= wanted:
            break
        if score == "taylor":
            module.zero_grad()
            for inputs, targets in batches:
                F.cross_entropy(module(inputs), targets).backward()
        pruner.step()
    else:
        raise UserError("groups: Torch-Pruning did not reach the share of FLOPs")
    small = lf.from_module(module, init=lf.as_built, warn=False)
    start = lf.init(small)
    tuned = lf.train(small, data, optimizer=lf.adam(_LR), steps=tuning)(start)
    whole = lf.to_module(lf.ticket(tuned), small).eval()
    return Small(whole, lf.accuracy_on(small, start, data), lf.accuracy_on(small, tuned, data))


if __name__ == "__main__":
    sys.exit(script(main))
