"""Nerva (Wesselink et al. 2024, arXiv:2407.17437) as a peer: MLPs whose weights are MKL's CSR matrices, trained by SET.

It has momentum and Nesterov, but no Adam, so its steps do less than those that it is measured beside. Its Python module
cannot evaluate a last layer that is sparse, so that one is dense, as it is in the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch.nn.functional as F

from lthfunc.trees.types import Batch, TrainState

from . import peers

#: What it has layers for: linear ones, with ReLU between them.
NETWORKS = ("lenet300", "mlp")
#: How the benchmark says that it is missing.
HOW = "Nerva is not installed, and not measured (docs/results/sparse-engine.md says how to build it)"
_MOMENTUM = 0.9


def is_installed() -> bool:
    """Whether its Python module can be imported."""
    try:
        import nerva.multilayer_perceptron  # noqa: F401
    except (ImportError, OSError):
        return False
    return True


def training(
    state: TrainState, ready: Sequence[Batch], every: int, end: Callable[[int], int],
    share: Callable[[int, int], float], threads: int,
) -> Callable[[int], None]:  # fmt: skip
    """Takes a training of so many steps, its network made anew.

    state: gives the density of each layer. ready: batches, scaled. every: steps between updates. end: of how many
    steps, the one from which masks stay; share: of (step, end), the weights that are exchanged.
    """
    import numpy as np

    classes = [*state.params.values()][-1].numel()
    batches = [
        (np.ascontiguousarray(x.flatten(1).numpy()), F.one_hot(y, classes).float().numpy()) for x, y in ready
    ]  # fmt: skip
    return partial(_train, state, batches, every, end, share, threads)


def _train(
    state: TrainState, batches: Sequence[tuple[Any, Any]], every: int, end: Callable[[int], int],
    share: Callable[[int, int], float], threads: int, steps: int,
) -> None:  # fmt: skip
    from nerva.loss_functions import SoftmaxCrossEntropyLoss
    from nerva.utilities import set_num_threads
    from nerva.weights import Xavier

    set_num_threads(threads)
    net, loss, last = _network(state, len(batches[0][0])), SoftmaxCrossEntropyLoss(), end(steps)
    for step in range(1, steps + 1):
        x, targets = batches[step % len(batches)]
        outputs = net.feedforward(x)
        net.backpropagate(outputs, loss.gradient(outputs, targets) / len(x))
        net.optimize(peers.LR)
        if step % every == 0 and step < last:
            for layer in net.layers[:-1]:
                layer.grow_random(layer.prune_magnitude(share(step, last)), Xavier())


def _network(state: TrainState, batch: int) -> Any:
    from nerva.activation_functions import NoActivation, ReLU
    from nerva.layers import Dense, Sparse
    from nerva.multilayer_perceptron import MultilayerPerceptron
    from nerva.optimizers import Momentum
    from nerva.utilities import manual_seed
    from nerva.weights import Xavier

    manual_seed(1)
    *hidden, last = state.masks.values()
    layers = [
        Sparse(mask.shape[1], mask.shape[0], float(mask.float().mean()), ReLU(), Momentum(_MOMENTUM), Xavier())
        for mask in hidden
    ]
    net = MultilayerPerceptron(
        [*layers, Dense(last.shape[1], last.shape[0], NoActivation(), Momentum(_MOMENTUM), Xavier())]
    )
    net.compile(batch)
    return net
