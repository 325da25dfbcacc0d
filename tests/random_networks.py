"""Random networks as code, and what every engine makes of them, against the eager engine.

    python tests/random_networks.py --networks 5000 --seed 1 [--kind tokens] [--engines sparse] [--show 17]

A network is a function of its kind and seed. One that an engine computes wrongly is printed with its code; --show
prints one.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from network_steps import FLAT_STEPS, FLAT_WEIGHTS, IMAGE_STEPS, IMAGE_WEIGHTS, Pen, Shape, flattened
from random_kinds import KINDS
from token_steps import FUNCTIONS
from torch import nn

#: The first kind has convolutions and linear layers.
IMAGES = "images"


@dataclass
class Network:
    """seed: that it was drawn from. code: of a module `Net`. shape, batch, density: of inputs, batches and masks.

    vocabulary: of inputs that are tokens, or 0. targets: the shape of an example's classes.
    """

    seed: int
    code: str
    shape: Shape
    batch: int
    density: float
    classes: int
    kind: str = IMAGES
    vocabulary: int = 0
    targets: Shape = ()

    def __str__(self) -> str:
        inputs = f"{self.vocabulary} tokens {self.shape}" if self.vocabulary else f"inputs {self.shape}"
        return (
            f"{self.kind}, network {self.seed}: {inputs}, targets {self.targets}, batch {self.batch}, density "
            f"{self.density}\n{self.code}"
        )

    def module(self) -> nn.Module:
        """Initialised by PyTorch's rules; the same numbers for the same seed."""
        names: dict[str, type[nn.Module]] = {}
        source = "import torch\nimport torch.nn.functional as F\nfrom torch import nn\n"
        source += (FUNCTIONS if self.kind != IMAGES else "") + self.code
        exec(compile(source, f"network{self.seed}", "exec"), names)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return names["Net"]()


def drawn(seed: int, kind: str = IMAGES) -> Network:
    """The network of a seed."""
    return _of_images(seed) if kind == IMAGES else _of_kind(seed, kind)


def _of_kind(seed: int, kind: str) -> Network:
    """A network of one of the other kinds, sometimes with frozen layers."""
    rng = random.Random(f"{kind} {seed}")
    batch = rng.choice([1, 2, 3, 5, 8, 15, 16, 17, 19, 33])
    pen = Pen(rng, batch)
    body = KINDS[kind](pen)
    share = rng.choice([0.0, 0.0, 0.3, 0.7])
    # The first may be the last's, and the last is trained.
    frozen = [number for number in range(1, len(pen.layers) - 1) if rng.random() < share]
    density = rng.choice([1.0, 0.7, 0.4, 0.15, 0.03])
    return Network(seed, _code(pen, frozen), body.shape, batch, density, body.classes, kind, body.vocabulary,
                   body.targets)  # fmt: skip


def _code(pen: Pen, frozen: Sequence[int] = ()) -> str:
    """The module that was written."""
    body = [f"self.m{number} = {each}" for number, each in enumerate(pen.layers)]
    body += [f"self.m{number}.requires_grad_(False)" for number in frozen]
    constructor, lines = ("\n        ".join(each) for each in (body, pen.lines))
    return (
        "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        "
        f"{constructor}\n\n    def forward(self, x):\n        {lines}\n"
    )


def _of_images(seed: int) -> Network:
    rng = random.Random(seed)
    batch = rng.choice([1, 2, 5, 8, 15, 16, 17, 20, 33])
    pen = Pen(rng, batch)
    flat = rng.random() < 0.15
    shape: Shape = (rng.randint(2, 20),) if flat else (rng.randint(1, 3), rng.randint(4, 9), rng.randint(4, 9))
    pen.shapes["x"] = shape
    x = "x"
    if not flat:
        for _ in range(rng.randint(1, 5)):
            x = rng.choices(IMAGE_STEPS, IMAGE_WEIGHTS)[0](pen, x)
        x = flattened(pen, x)
    for _ in range(rng.randint(flat, 3)):
        x = rng.choices(FLAT_STEPS, FLAT_WEIGHTS)[0](pen, x)
    classes = rng.randint(2, 5)
    last = pen.layer(f"nn.Linear({pen.shapes[x][0]}, {classes})")
    pen.lines.append(f"return {last}({x})")
    return Network(seed, _code(pen), shape, batch, rng.choice([1.0, 0.7, 0.4, 0.15, 0.03]), classes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Hold all engines to the eager one over random networks; how many differ."""
    from network_engines import USUAL, Tally, held  # here, since the module above is what it takes networks from

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=300, metavar="N", help="how many (default: 300)")
    parser.add_argument("--seed", type=int, default=0, help="of the first; each next one has the next (default: 0)")
    parser.add_argument("--kind", choices=[IMAGES, *KINDS], default=IMAGES, help=f"of networks (default: {IMAGES})")
    parser.add_argument("--engines", nargs="+", choices=USUAL, default=USUAL, metavar="NAME",
                        help=f"that are held to the eager one, of {', '.join(USUAL)} (default: all)")  # fmt: skip
    parser.add_argument("--compile", type=int, default=0, metavar="N", help="compile the first N by Inductor as well")
    parser.add_argument("--show", type=int, metavar="SEED", help="print the code of one network, and stop")
    given = parser.parse_args(arguments)
    if given.show is not None:
        print(drawn(given.show, given.kind))
        return 0
    tally = Tally()
    for number in range(given.networks):
        network = drawn(given.seed + number, given.kind)
        engines = (*given.engines, "compile") if number < given.compile else given.engines
        for fault in held(network, tally, engines):
            again = f"--kind {network.kind} --networks 1 --seed {network.seed}"
            print(f"{fault}\n{network}\nagain: python {sys.argv[0]} {again}\n", flush=True)
    print(tally)
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
