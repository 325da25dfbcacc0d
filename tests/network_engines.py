"""What engines make of a random network: trained and evaluated, and held to the eager engine and to float64."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from random_networks import Network
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import lthfunc as lf
from lthfunc.catalog.training import ENGINES
from lthfunc.deployment.compaction.compact import compact
from lthfunc.deployment.compaction.compact_engine import compact_engine
from lthfunc.errors import UserError
from lthfunc.training.cpu_threads import using_threads
from lthfunc.training.engines import compiled, tracing
from lthfunc.training.loop import take_steps
from lthfunc.training.trainer import make_trainer, measure
from lthfunc.trees.model import apply_evaluating
from lthfunc.trees.types import IGNORED_PIXEL, Dataset, Split, Ticket, TrainState

STEPS = 3
#: By how much of a leaf's change an engine may differ from float64, and of the whole network's; besides what the eager
#: engine differs by, so many times. Rounding grows with each normalisation; a wrong function is wrong by a large part.
OF_LEAF, OF_ALL, OF_EAGER = 0.02, 2e-3, 10.0
#: The target that counts for nothing, where tokens and where pixels have classes.
IGNORED = {1: -100, 2: IGNORED_PIXEL}


@dataclass
class Tally:
    """ran: networks by engine. refused: the reasons, by engine."""

    networks: int = 0
    ran: Counter[str] = field(default_factory=Counter)
    refused: dict[str, Counter[str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def share(self, engine: str) -> float:
        """Which part of the networks that it was tried on an engine ran."""
        return self.ran[engine] / max(1, self.ran[engine] + sum(self.refused.get(engine, Counter()).values()))

    def add(self, other: Tally) -> None:
        """Count another one's networks, too."""
        self.networks += other.networks
        self.ran += other.ran
        self.faults += other.faults
        for engine, reasons in other.refused.items():
            self.refused.setdefault(engine, Counter()).update(reasons)

    def __str__(self) -> str:
        lines = [f"{self.networks} networks, {len(self.faults)} faults"]
        for engine, count in self.ran.items():
            refused = self.refused.get(engine, Counter())
            lines.append(f"{engine}: ran {count}, refused {sum(refused.values())}")
            lines += [f"    {number} {reason}" for reason, number in refused.most_common(8)]
        return "\n".join(lines)


@dataclass
class Trained:
    """A state after some steps, the loss on the way, and how good it is on other data."""

    state: TrainState
    loss: float
    quality: Any


def beginning(network: Network) -> tuple[lf.Model, TrainState, Dataset]:
    """The network under random masks, with some rows and sometimes a whole layer pruned, and data for it.

    Biases are away from zero, where PyTorch begins them after a normalisation: a normalised mean that is zero but for
    rounding would then be a ReLU's argument, and its sign, and so the bias's gradient, would be rounding's.
    """
    model = lf.from_module(network.module(), tokens=bool(network.vocabulary), warn=False)
    generator = torch.Generator().manual_seed(network.seed)

    def drawn(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    state = lf.init(model, seed=network.seed)
    params = {
        name: leaf + 0.1 * torch.randn(leaf.shape, generator=generator) if leaf.ndim == 1 else leaf
        for name, leaf in state.params.items()
    }
    masks = {}
    for name in model.prunable:
        mask = drawn(*state.params[name].shape) < network.density
        if drawn(1) < 0.2:
            mask[drawn(len(mask)) < 0.4] = False
        if drawn(1) < 0.04 * (network.density < 1):
            mask[:] = False
        masks[name] = mask
    count = STEPS * network.batch + 1
    if network.vocabulary:
        x = torch.randint(0, network.vocabulary, (count + 10, *network.shape), generator=generator)
        x[:, 0] = 1  # no sequence is padding alone
    else:
        x = torch.randn(count + 10, *network.shape, generator=generator)
    y = torch.randint(0, network.classes, (count + 10, *network.targets), generator=generator)
    if network.targets:
        unknown = drawn(*y.shape) < 0.2
        unknown.flatten(1)[:, 0] = False
        y[unknown] = IGNORED[len(network.targets)]
    train, other = Split(x[:count], y[:count]), Split(x[count:], y[count:])
    data = Dataset("random", train, other, other, network.classes)
    return model, state._replace(params=lf.apply_masks(params, masks), masks=masks), data


def double(tree: Any) -> Any:
    """The same numbers in float64."""
    if isinstance(tree, Tensor):
        return tree.double() if tree.is_floating_point() else tree
    if isinstance(tree, dict):
        return {name: double(leaf) for name, leaf in tree.items()}
    return tree._replace(x=double(tree.x))


def trained(model: lf.Model, state: TrainState, data: Dataset, batch: int, engine: Any) -> Trained:
    losses: Any = {"loss": lf.pixel_cross_entropy, "metric": lf.mean_iou} if data.pixels else {}
    trainer = make_trainer(model, data, optimizer=lf.sgd(0.05, momentum=0.9), batch_size=batch, engine=engine, **losses)
    after, loss = take_steps(trainer, state, seed=0, until=STEPS)
    (quality,) = measure(trainer, [after], data.val)
    return Trained(after, loss, quality)


def interpreted(work: Any) -> Any:
    """The compiled engine on its own rewritten graph, taken operation by operation instead of compiled."""

    def traced(function: Callable[..., Any], example: Any, name: str) -> Any:
        graph = make_fx(function, tracing._RULES, tracing_mode="fake", _allow_non_fake_inputs=True)(*example)
        for node in graph.graph.nodes:  # the strides of real tensors are not always those that were told in tracing
            if node.target is torch.ops.aten.view.default:
                node.target = torch.ops.aten.reshape.default
        graph.recompile()
        return graph

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "compiled", traced)
        engine = compiled.compile_engine(work)

    def patched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(compiled, "compiled", traced)
                return function(*arguments)

        return call

    return engine._replace(begin=patched(engine.begin), measure=patched(engine.measure))


def differences(
    found: Trained, eager: Trained, exact: Trained, start: TrainState, trees: tuple[str, ...] = ("params", "buffers")
) -> Iterator[str]:
    """What differs from float64 by more than rounding explains."""
    for tree in trees:
        mine, near, true, before = (getattr(each, tree) for each in (found.state, eager.state, exact.state, start))
        changes = {name: (leaf - before[name]).double() for name, leaf in true.items()}
        whole = sum(float(change.square().sum()) for change in changes.values()) ** 0.5
        for name, leaf in true.items():
            off, usual = (float((each[name].double() - leaf.double()).norm()) for each in (mine, near))
            if not off <= OF_LEAF * float(changes[name].norm()) + OF_ALL * whole + OF_EAGER * usual + 1e-6:
                yield f"{name} is {off:.3g} off (eager: {usual:.3g}), of a change of {float(changes[name].norm()):.3g}"
    for what, a, b, c in (
        ("training loss", found.loss, eager.loss, exact.loss),
        ("loss", found.quality.loss, eager.quality.loss, exact.quality.loss),
    ):
        if not abs(a - c) <= 5e-3 * abs(c) + OF_EAGER * abs(b - c) + 1e-5:
            yield f"{what} {a} for {c} (eager: {b})"
    for name, mask in start.masks.items():
        if found.state.params[name][~mask].any():
            yield f"{name} has pruned weights that are not zero"


def beside(model: lf.Model, start: TrainState, data: Dataset, batch: int) -> Iterator[Trained]:
    """The eager engine from weights a rounding away: where a ReLU or a maximum turns on it, results jump."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        params = {
            name: leaf * (1 + 1e-6 * torch.randn(leaf.shape, generator=generator))
            for name, leaf in start.params.items()
        }
        yield trained(model, start._replace(params=params), data, batch, "eager")


def outputs_off(outputs: Tensor, near: Tensor, true: Tensor) -> Iterator[str]:
    """The same of outputs in evaluation."""
    off, usual = float((outputs.double() - true).abs().max()), float((near.double() - true).abs().max())
    if not off <= 1e-3 * float(true.abs().max()) + OF_EAGER * usual + 1e-5:
        yield f"outputs are {off:.3g} off (eager: {usual:.3g}), of up to {float(true.abs().max()):.3g}"


def training_alone(make: Any) -> Any:
    """An engine whose networks the eager one evaluates: half of the traces are of evaluations."""
    return lambda work: make(work)._replace(measure=ENGINES.load("eager")(work).measure)


#: Engines by the names of tallies; the last one takes long.
ENGINES_HELD: dict[str, Any] = {
    "sparse": lf.sparse_engine, "compact": compact_engine("eager"), "compile, interpreted": interpreted,
    "compile": "compile",
}  # fmt: skip
USUAL = tuple(ENGINES_HELD)[:-1]


def held(network: Network, tally: Tally, among: Sequence[str] = USUAL, *, inferring: bool = True) -> list[str]:
    """Hold engines to the eager one; the faults found. inferring: in evaluation and on two threads, too."""
    model, start, data = beginning(network)
    wide = data._replace(**{part: double(getattr(data, part)) for part in ("train", "val", "test")})
    doubled = start._replace(params=double(start.params), buffers=double(start.buffers))
    wide_model = lf.from_module(network.module().double(), tokens=bool(network.vocabulary), warn=False)
    exact = trained(wide_model, doubled, wide, network.batch, "eager")
    eager = trained(model, start, data, network.batch, "eager")
    faults: list[str] = []
    tally.networks += 1

    def run(name: str, of: Callable[[], Iterator[str]]) -> None:
        try:
            faults.extend(f"{name}: {fault}" for fault in of())
            tally.ran[name] += 1
        except UserError as error:
            reason = str(error).split(" (line")[0].replace(f"network{network.seed}", "Net")
            tally.refused.setdefault(name, Counter())[reason] += 1
            of_line = f" of network{network.seed}" in str(error) or not name.startswith("sparse")
            if "\n" in str(error) or not str(error).startswith(("engine: ", "compact: ")) or not of_line:
                faults.append(f"{name}: refused as {error}")
        except Exception:
            faults.append(f"{name}: {traceback.format_exc()}")

    for name in among:
        engine = ENGINES_HELD[name] if inferring else training_alone(ENGINES_HELD[name])
        # Running statistics of channels that are left out keep their values.
        trees = ("params",) if name == "compact" else ("params", "buffers")

        def training(name: str = name, engine: Any = engine, trees: tuple[str, ...] = trees) -> Iterator[str]:
            found = trained(model, start, data, network.batch, engine)
            if name == "sparse" and inferring:
                with using_threads(2):
                    again = trained(model, start, data, network.batch, engine)
                if not lf.same_bits(found.state, again.state) or found.loss != again.loss:
                    yield "two threads give other bits than one"
            faults = list(differences(found, eager, exact, start, trees))
            if faults and not any(
                not [*differences(found, near, exact, start, trees)]
                for near in beside(model, start, data, network.batch)
            ):
                yield from faults

        run(name, training)

    if not inferring:
        tally.faults += faults
        return faults
    ticket = Ticket(exact.state.params, exact.state.buffers, start.masks)
    params, buffers = ({k: v.float() if v.is_floating_point() else v for k, v in tree.items()} for tree in ticket[:2])
    ticket = Ticket(params, buffers, start.masks)
    x = data.train.x[:19]
    near = apply_evaluating(model, ticket.params, ticket.buffers, x)
    true = apply_evaluating(model, double(ticket.params), double(ticket.buffers), double(x))

    def inference() -> Iterator[str]:
        program = lf.sparse_program(model, ticket)
        yield from outputs_off(program(x), near, true)
        yield from outputs_off(torch.cat([program(x[i : i + 1]) for i in range(2)]), near[:2], true[:2])

    def compacted() -> Iterator[str]:
        small = compact(model, ticket, network.shape)
        yield from outputs_off(apply_evaluating(small.model, small.params, small.buffers, x), near, true)

    if "sparse" in among:
        run("sparse inference", inference)
    if set(among) - {"sparse"}:
        run("compact inference", compacted)
    tally.faults += faults
    return faults
