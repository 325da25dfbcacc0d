"""Whole experiments on a pretended accelerator, beside the same on the CPU: `python accelerated.py GROUP …`.

In a process of its own, since PyTorch counts devices once, as it first differentiates. Mixing devices raises there, and
the host's waits are counted by line.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from conftest import DroppingNet, NormedNet, shorter
from method_plans import outcome, plan_for
from pretended import Machine, accelerator, pretended
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.catalog.methods import METHODS
from lthfunc.catalog.pruning import ALLOCATIONS, CONTROLS, REWINDINGS, SCORES
from lthfunc.deployment import compiled, formats
from lthfunc.distributed.collectives import SINGLE_RANK
from lthfunc.experiments.config import Config
from lthfunc.experiments.functions import ScoreContext, allocation_of, score_of, structure_of
from lthfunc.experiments.iterative import Plan, Task
from lthfunc.experiments.rewinding_and_controls import start_of
from lthfunc.experiments.trainings import iterative
from lthfunc.scheduling.checkpointing import train_with_checkpoints
from lthfunc.scheduling.queue import Execution
from lthfunc.sparsify.activations import input_moments
from lthfunc.training.engines import compiled as loops
from lthfunc.training.loop import fit_together
from lthfunc.training.results import Stopped
from lthfunc.training.trainer import Trainer, make_trainer
from lthfunc.trees.ops import data_to_device, leaves, to_device, tree_map
from lthfunc.trees.types import Dataset, Masks, TrainState

#: What runs on a device, named for messages, and gives a tree of numbers.
Scene = Callable[[str], Any]

MLP, NORMED = lf.models.lenet300((1, 8, 8), 10), lf.from_module(NormedNet())
#: Of few leaves and of many.
SHALLOW, DEEP = (
    lf.from_module(nn.Sequential(nn.Flatten(), *(nn.Linear(64, 64) for _ in range(layers)), nn.Linear(64, 10)))
    for layers in (1, 8)
)


@functools.cache
def digits(device: str) -> Dataset:
    """240 training images of the genuine digits, on a device."""
    whole = lf.data.load("digits")
    train, val, test = shorter(whole.train, 240), shorter(whole.val, 60), shorter(whole.test, 60)
    return data_to_device(whole._replace(train=train, val=val, test=test), device)


def trainer(device: str, model: lf.Model = MLP, optimizer: lf.Optimizer | None = None, **settings: Any) -> Trainer:
    return make_trainer(
        model, digits(device), optimizer=optimizer or lf.adam(1e-3), batch_size=40,
        **{"loss": lf.cross_entropy, **settings},
    )  # fmt: skip


def trained(
    device: str, model: lf.Model = MLP, seeds: Sequence[int] = (0,), steps: int = 6, looks: int = 2, **settings: Any
) -> list[Any]:
    """Pruned networks, trained side by side; looks: after the one at the beginning."""
    starts = to_device([lf.prune(fraction=0.5)(lf.init(model, seed)) for seed in seeds], device)
    work = trainer(device, model, **settings)
    fits = fit_together(work, starts, seeds=list(seeds), until=steps, eval_every=steps // looks)
    return [(fit.state[:4], fit.curve[-1].val_loss) for fit in fits]


def streamed(device: str) -> Any:
    """Data that stay on the host."""
    return [
        fit.state[:4]
        for fit in fit_together(trainer("cpu"), [to_device(lf.init(MLP), device)], seeds=[0], until=6, eval_every=3)
    ]


def pruned(device: str, **how: Any) -> TrainState:
    return lf.prune(density=0.5, **how)(to_device(lf.init(MLP), device))


def scored(device: str, name: str) -> Any:
    start = to_device(lf.prune(fraction=0.5)(lf.init(NORMED)), device)
    anchor = to_device(lf.init(NORMED), device)
    score = score_of(name)(ScoreContext(NORMED, digits(device), 40, 1e-3, 0, 1, start, anchor, batch_count=2))
    return lf.prune(fraction=0.3, score=score)(start).masks


def flowing(device: str, rounds: int) -> Any:
    score = lf.synflow(lf.forward_of(MLP, {}), (1, 8, 8))
    return lf.prune_to_densities(lf.geometric(0.05, rounds), score=score)(to_device(lf.init(MLP), device)).masks


def masks_of(device: str, **how: Any) -> Masks:
    return pruned(device, **how).masks


def method(device: str, name: str) -> Any:
    how = {"optimizer": "adam", "lr": 1e-3, "batch_size": 40, "density": 0.1}
    once = METHODS[name].at_init or name == "one-shot"
    how |= ({"score_rounds": 5} if name == "synflow" else {}) | ({} if once else {"rounds": 1})
    ended = outcome(plan_for(name, MLP, digits(device), steps=8, eval_every=4, **how), 1, device)
    return ended.ticket if name != "supermask" else lf.layer_counts(ended.masks)  # which draws


def experiment(device: str, rewind: str, controls: Sequence[str] = ()) -> Any:
    plan = Plan(
        model=MLP, trainer=trainer(device), steps=4, eval_every=4, rounds=1, rate=0.4,
        rewind=start_of(REWINDINGS, rewind), anchor_step=2,
        controls={name: start_of(CONTROLS, name) for name in controls},
    )  # fmt: skip
    return [(each.start, each.fit.state[:4]) for each in iterative(plan, 0, device=device)]


def dying(device: str) -> TrainState:
    """Many of whose units are dead."""
    return to_device(lf.prune(density=0.02)(lf.init(MLP)), device)


def specialised(device: str, format: str) -> Any:
    x = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0)).to(device)
    return lf.specialize(lf.ticket(dying(device)), MLP, x, device, format=format)(x)


def stopped(device: str) -> Any:
    """A training that is kept on its way, and gone on with."""
    plan = Plan(MLP, trainer(device), steps=6, eval_every=3, rounds=0)
    task, step = Task(0, 0, "ticket", pruned(device), None), 0

    def observe(number: int, points: object) -> None:
        nonlocal step
        step = number

    with TemporaryDirectory() as folder:
        with suppress(Stopped):
            train_with_checkpoints(
                Execution(Config(checkpoint_every="2"), plan, Path(folder), lambda: step >= 4), [task], observe
            )
        (result,), _ = train_with_checkpoints(Execution(Config(), plan, Path(folder)), [task])
    return result.fit.state[:4]


def attached(device: str, steps: int = 3) -> Any:
    """A plain loop that is pruned, rewound and resumed from a checkpoint on the host."""
    net = lf.to_module(lf.ticket(lf.init(MLP)), MLP).train().to(device)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    x, y = (part[:40] for part in digits(device).train)
    held = lf.attach(net, optimizer, lf.prune(fraction=0.5), rewind=lf.rewound)
    for _ in range(3):
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x.float() / 16), y).backward()
            optimizer.step()
        held.next_round()
        held.load_state_dict(tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, held.state_dict()))
    return held.ticket()


def instability(device: str) -> Any:
    found = lf.instability(MLP, trainer(device), to_device(lf.init(MLP), device), [2], steps=4, seed=0, points=3)
    return [each.line.loss for each in found]


def surgery(device: str) -> Any:
    start = to_device(lf.init(MLP), device)
    moments = input_moments(MLP, start, [digits(device).train.x[:40].float()])
    return lf.sparsegpt(moments, 0.5)(start).masks


def without_units(device: str) -> Any:
    select = lf.units(exempt=("fc3.weight",))
    return lf.without_dead_units(pruned(device, allocate=lf.uniform(), select=select), lf.dependencies(MLP, (1, 8, 8)))


GROUPS: dict[str, dict[str, Scene]] = {
    "trainings": {
        "momentum": lambda on: trained(on, optimizer=lf.sgd(0.1, 0.9, nesterov=True)),
        "a schedule": lambda on: trained(on, optimizer=lf.adamw(lf.warmup(lf.cosine(1e-3, 40), 5))),
        "muon": lambda on: trained(on, optimizer=lf.muon(0.02)),
        "convolutions side by side": lambda on: trained(on, NORMED, (0, 1, 2), optimizer=lf.adam(1e-4)),
        "augmented": lambda on: trained(on, NORMED, augment=lf.shift_and_mirror, optimizer=lf.adam(1e-4)),
        "dropout": lambda on: trained(on, lf.from_module(DroppingNet())) and (),
        "skipping": lambda on: trained(on, on_nonfinite="skip"),
        "the compiled loop": lambda on: trained(on, NORMED, (0, 1), optimizer=lf.adam(1e-4), engine="compile"),
        "compacted": lambda on: trained(on, engine=lf.compact_engine("eager")),
        "streamed": streamed,
        "stopped": stopped,
        "a plain loop": attached,
    },
    "prunings": {
        **{f"score {name}": partial(scored, name=name) for name in SCORES},
        **{
            f"allocation {name}": partial(masks_of, allocate=allocation_of(Config(allocate=name)))
            for name in ALLOCATIONS
        },
        **{
            f"structure {name}": partial(
                masks_of,
                allocate=lf.uniform(),
                select=structure_of(Config(structure=name, exempt=("fc3.weight",)), MLP, (1, 8, 8)),
            )
            for name in ("per-output", "units", "groups", "2:4", "4x4")
        },
        "in parts": lambda on: lf.prune_sharded(SINGLE_RANK, fraction=0.3)(to_device(lf.init(MLP), on)).masks,
        "surgery": surgery,
        "without units": without_units,
        "instability": instability,
        "synflow in rounds": lambda on: flowing(on, 5),
        "compact": lambda on: lf.compact(MLP, lf.ticket(dying(on)), (1, 8, 8)).params,
        **{f"specialize {name}": partial(specialised, format=name) for name in ("dense", "compact", "auto")},
    },
    "experiments": {
        **{
            f"method {name}": partial(method, name=name)
            for name in ("early-bird", "gradual", "rigl", "ste", "str", "supermask", "edge-popup", "grasp-reinit")
        },
        **{f"rewinding {name}": partial(experiment, rewind=name) for name in ("step:2", "sign", "reinit")},
        "controls": lambda on: experiment(on, "init", tuple(CONTROLS)),
    },
}  # fmt: skip


def compared(machine: Machine, name: str, scene: Scene) -> str | None:
    """How a scene differs on the accelerator; None where it doesn't."""
    here = scene("cpu")
    there = scene(f"{machine.kind}:0")
    for ours, theirs in zip(leaves(here), leaves(there), strict=True):
        if isinstance(ours, Tensor) and not torch.allclose(ours.double(), theirs.cpu().double(), rtol=1e-3, atol=1e-4):
            return f"{name}: {theirs.cpu()} where the CPU has {ours}"
        if not isinstance(ours, Tensor) and abs(ours - theirs) > 1e-3 * abs(ours):
            return f"{name}: {theirs} where the CPU has {ours}"
    return None


def waits(machine: Machine, scene: Scene) -> int:
    """How often the host waits for the accelerator, in this library."""
    machine.waits.clear()
    scene(f"{machine.kind}:0")
    return sum(count for line, count in machine.waits.items() if line.startswith("lthfunc/"))


def check_waits(machine: Machine) -> None:
    """Neither a step waits, nor a look for each network or each leaf; nor do SynFlow's rounds."""
    base = waits(machine, trained)
    assert waits(machine, lambda on: trained(on, steps=12)) == base, "a step waits"
    assert waits(machine, lambda on: trained(on, seeds=(0, 1, 2))) == base, "each network is waited for"
    assert waits(machine, attached) == waits(machine, lambda on: attached(on, steps=6)), "an attached step waits"
    shallow, deep = (waits(machine, partial(trained, model=model)) for model in (SHALLOW, DEEP))
    assert shallow == deep, "each leaf is waited for"
    loop = waits(machine, lambda on: trained(on, engine="compile"))
    assert waits(machine, lambda on: trained(on, engine="compile", steps=12, seeds=(0, 1))) == loop <= base
    look = waits(machine, lambda on: trained(on, steps=9, looks=3)) - base
    assert look == 3, "the losses, whether all is finite, and the evaluation"
    assert waits(machine, lambda on: flowing(on, 3)) == waits(machine, lambda on: flowing(on, 6)) == 3


def main(groups: Sequence[str]) -> None:
    # No compiler knows this device, so programs are the functions they are compiled from; nor has it matrices of other
    # layouts.
    compiled.why_not = lambda device: "none for this device"  # type: ignore[attr-defined]
    loops.compiled = lambda function, example, name: function  # type: ignore[attr-defined]
    nowhere = formats.Format(lambda layer: "not on this device", formats.ListedLayer)
    formats.LISTED = formats.CSR = formats.BLOCK = formats.SEMI_STRUCTURED = nowhere
    with pretended(accelerator()) as machine:
        if "trainings" in groups:
            check_waits(machine)
        scenes = {f"{group}: {name}": scene for group in groups for name, scene in GROUPS[group].items()}
        found = [compared(machine, name, scene) for name, scene in scenes.items()]
    differences = [each for each in found if each is not None]
    assert not differences, "\n".join(differences)


if __name__ == "__main__":
    main(sys.argv[1:] or list(GROUPS))
