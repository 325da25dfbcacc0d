"""Which of torchvision's classification families the sparse engine trains, and why it refuses the others.

    python -m benchmarks.families --network swin_t

or, installed, `lthfunc benchmark families`; all without --network.

Nothing is computed: a network is traced, without weights, on its smallest images, and lowered in both modes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table
from torchvision import models

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.sparse.capture import captured
from lthfunc.sparse.program import Epilogue, Stored, program_of

from .records import Options, chosen, saying, script

#: A network of each family, and the side of its images.
FAMILIES = {
    "alexnet": 64, "vgg11_bn": 32, "resnet18": 32, "resnext50_32x4d": 32, "wide_resnet50_2": 32, "squeezenet1_1": 32,
    "densenet121": 32, "googlenet": 32, "inception_v3": 128, "mobilenet_v2": 32, "mobilenet_v3_small": 32,
    "mnasnet0_5": 32, "shufflenet_v2_x0_5": 32, "efficientnet_b0": 32, "efficientnet_v2_s": 32, "regnet_x_400mf": 32,
    "regnet_y_400mf": 32, "convnext_tiny": 32, "vit_b_32": 224, "swin_t": 32, "swin_v2_t": 32, "maxvit_t": 224,
}  # fmt: skip
#: Their losses would take several outputs.
_WITHOUT_AUXILIARY = ("googlenet", "inception_v3")


def main(arguments: list[str] | None = None) -> None:
    """Lower, print. Raises UserError for an unknown network."""
    options = Options("families", __doc__)
    options.networks(f"one of {', '.join(FAMILIES)} (default: all)")
    run(**options.parsed(arguments))


def run(*, networks: Sequence[str]) -> dict[str, str | None]:
    """Print a table; returns why each network is refused, or None."""
    names = chosen(networks, tuple(FAMILIES), tuple(FAMILIES), 1)
    found = {}
    for name in names:
        saying(name)("one program for training, one for evaluation")
        found[name] = why_not(name)
    table = Table("torchvision's", "images", "on the sparse engine", box=None, pad_edge=False)
    for name, why in found.items():
        table.add_row(name, f"{FAMILIES[name]}²", "runs" if why is None else why)
    Console(width=120).print(table)
    return found


def why_not(name: str) -> str | None:
    """Why the sparse engine refuses a network of torchvision's, in one line; None where it trains it."""
    plain = {"aux_logits": False, "init_weights": False} if name in _WITHOUT_AUXILIARY else {}
    module = models.get_model(name, weights=None, num_classes=10, **plain)
    model, shape = lf.from_module(module, name=name, warn=False), (3, FAMILIES[name], FAMILIES[name])
    params: dict[str, torch.Tensor] = dict(model.training.named_parameters())
    buffers = dict(model.training.named_buffers())
    pruned = {key: torch.zeros_like(leaf, dtype=torch.bool) for key, leaf in params.items() if leaf.ndim > 1}
    try:
        for training in (True, False):
            program_of(
                captured(model, shape, training=training), params, buffers, pruned, batch=1,
                stored=Stored(shape, torch.float32), epilogue=Epilogue(None, gradients=training),
            )  # fmt: skip
    except UserError as error:
        return str(error)
    return None


if __name__ == "__main__":
    sys.exit(script(main))
