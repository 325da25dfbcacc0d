"""Theoretical cost of a network, dense and pruned: parameters, bytes and FLOPs."""

from __future__ import annotations

from typing import NamedTuple

from lthfunc.arguments import public
from lthfunc.trees.flops import flops_by_weight
from lthfunc.trees.model import Model
from lthfunc.trees.module_errors import taking_inputs
from lthfunc.trees.types import Masks, Params


class LayerCost(NamedTuple):
    """Of one layer. flops: per example, counting multiplications and additions; effective: of the surviving weights."""

    flops: float
    effective: float
    total: int
    kept: int


class Cost(NamedTuple):
    """Theoretical cost of one example through a network.

    layers: by weight name. flops, effective_flops: of all matrix products and convolutions (nothing else is counted).
    parameters, remaining: including biases and normalisation.
    """

    layers: dict[str, LayerCost]
    flops: float
    effective_flops: float
    parameters: int
    remaining: int

    @property
    def compression_ratio(self) -> float:
        """Parameters of the dense network divided by those that remain (Blalock et al. 2020, section 4)."""
        return self.parameters / self.remaining

    @property
    def theoretical_speedup(self) -> float:
        """Multiply-adds of the dense network divided by those that remain (Blalock et al. 2020, section 4)."""
        return self.flops / self.effective_flops if self.effective_flops else float("inf")

    @property
    def bytes(self) -> tuple[int, int]:
        """Bytes of float32 parameters: (dense, remaining without their positions)."""
        return 4 * self.parameters, 4 * self.remaining


@public
def cost(model: Model, params: Params, masks: Masks, shape: tuple[int, ...]) -> Cost:
    """Count the parameters and FLOPs of a network, dense and pruned.

    params, masks: of the model. shape: of one input, without the batch.

    Returns a `Cost`. A layer's FLOPs are those that ``torch.utils.flop_counter`` counts on one example of zeros; its
    effective FLOPs are these times its density. Ratios are as defined by Blalock et al., *What is the State of Neural
    Network Pruning?*, MLSys 2020, section 4. Raises UserError where the network does not take inputs of this shape.

    >>> import lthfunc as lf
    >>> model = lf.models.lenet300()
    >>> state = lf.prune(density=0.1)(lf.init(model))
    >>> found = lf.cost(model, state.params, state.masks, (1, 28, 28))
    >>> found.parameters, found.remaining, found.flops
    (266610, 27030, 532400.0)
    """
    with taking_inputs(model.name, shape, model.evaluating):
        sizes = {name: mask.numel() for name, mask in masks.items()}
        flops, total = flops_by_weight(model.evaluating, shape, sizes, tokens=model.tokens)
    layers = {}
    for name, mask in masks.items():
        count, kept = mask.numel(), int(mask.sum())
        own = flops[name]
        layers[name] = LayerCost(own, own * kept / max(1, count), count, kept)
    gone = sum(layer.flops - layer.effective for layer in layers.values())
    parameters = sum(leaf.numel() for leaf in params.values())
    pruned = sum(layer.total - layer.kept for layer in layers.values())
    return Cost(layers, float(total), total - gone, parameters, parameters - pruned)
