"""What a network costs in theory: parameters, bytes and FLOPs, of the dense one and of what remains."""

from __future__ import annotations

from typing import NamedTuple

from lthfunc.arguments import public
from lthfunc.errors import UserError
from lthfunc.trees.flops import flops_by_module
from lthfunc.trees.model import Model, example_input
from lthfunc.trees.module_errors import inputs_rejected
from lthfunc.trees.types import Masks, Params


class LayerCost(NamedTuple):
    """Of one layer. flops: of one example, an addition and a multiplication counted apart; effective: of survivors."""

    flops: float
    effective: float
    total: int
    kept: int


class Cost(NamedTuple):
    """Of one example through a network.

    layers: by weight. flops, effective_flops: of all products (what is not a product isn't counted). parameters,
    remaining: with biases and normalisation.
    """

    layers: dict[str, LayerCost]
    flops: float
    effective_flops: float
    parameters: int
    remaining: int

    @property
    def compression_ratio(self) -> float:
        """Parameters of the dense network by those that remain (Blalock et al. 2020, section 4)."""
        return self.parameters / self.remaining

    @property
    def theoretical_speedup(self) -> float:
        """Multiply-adds of the dense network by those that remain (Blalock et al. 2020, section 4)."""
        return self.flops / self.effective_flops if self.effective_flops else float("inf")

    @property
    def bytes(self) -> tuple[int, int]:
        """Of float32 parameters: (dense, those that remain without their positions)."""
        return 4 * self.parameters, 4 * self.remaining


@public
def cost(model: Model, params: Params, masks: Masks, shape: tuple[int, ...]) -> Cost:
    """Count, on one example of zeros. shape: of one input.

    A layer's FLOPs are PyTorch's own count of its products; those of its surviving weights are that times its density.
    """
    try:
        flops = flops_by_module(model.evaluating, shape, tokens=model.tokens)
    except UserError:
        raise
    except Exception as error:
        raise inputs_rejected(model.name, example_input(model, shape), error, model.evaluating) from error
    layers = {}
    for name, mask in masks.items():
        count, kept = mask.numel(), int(mask.sum())
        own = float(flops.get(name.rpartition(".")[0], 0))
        layers[name] = LayerCost(own, own * kept / max(1, count), count, kept)
    gone = sum(layer.flops - layer.effective for layer in layers.values())
    parameters = sum(leaf.numel() for leaf in params.values())
    pruned = sum(layer.total - layer.kept for layer in layers.values())
    return Cost(layers, float(flops[""]), flops[""] - gone, parameters, parameters - pruned)
