"""Scores of links that a layer lacks, from the links that it has: no weight and no gradient is looked at."""

from __future__ import annotations

import torch
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.sparsify.scores import Scores
from lthfunc.trees.types import Masks, Params


@public
def ch3_l3(params: Params, masks: Masks) -> Scores:
    """CH3-L3: paths of length three between the ends of a missing link, counted less where they lead elsewhere too.

    The growth score of Cannistraci-Hebb training (Zhang et al. 2024, eq. 1; Muscoloni et al. 2022). A layer is a
    bipartite graph of its outputs and inputs (those of a convolution: channel and place in the kernel), the mask its
    links. Each path u - a - b - v adds 1 / √((1 + e_a) (1 + e_b)), e being the links of a node that lead neither to u
    or v nor to a node of such a path. Only scores of missing links mean something. A layer of n links, m outputs and k
    inputs takes 2 n m k multiplications. Returns the scores, in the params' dtype.

    >>> masks = {"w": torch.tensor([[True, True, False], [False, True, False], [True, False, True]])}
    >>> lf.ch3_l3({"w": torch.zeros(3, 3)}, masks)["w"][1, 0]  # 1 - 1 - 0 - 0, and nothing leads elsewhere but 0 - 2
    tensor(1.)
    """
    return {
        name: _layer(mask.flatten(1).double()).view(mask.shape).to(params[name].dtype) for name, mask in masks.items()
    }


def _layer(links: Tensor) -> Tensor:
    """The scores of one matrix of links, output by output."""
    of_outputs, of_inputs, rows = links.sum(1), links.sum(0), []
    for mine in links.bool():
        reached = links[:, mine]  # b - a, where a is an input of mine
        # Links of b to my inputs lie on paths to whatever input b has; so all others lead elsewhere, but for one to v.
        elsewhere = of_outputs - reached.sum(1)
        paths = reached.T @ links  # a - b - v
        weighed = reached.T @ (links * elsewhere.clamp(min=1).rsqrt()[:, None])
        others = of_inputs[mine][:, None] - paths  # links of a that don't lead to a node of a path, but for one to me
        rows.append((weighed * others.clamp(min=1).rsqrt()).sum(0))
    return torch.stack(rows)
