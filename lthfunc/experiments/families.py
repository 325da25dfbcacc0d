"""The names of the field, family by family, with what each means: the command line's help, free of torch.

`experiments/functions.py` has the functions of scores, allocations and rewindings, `experiments/methods/table.py` those
of methods; tests hold the names equal.
"""

from __future__ import annotations

SCORES = {
    "magnitude": "|w|",
    "random": "uniform",
    "large-init": "|w| at the start",
    "magnitude-increase": "growth of |w| since the start",
    "distance-moved": "distance from the start",
    "large-init-large-final": "|w| then and now, the smaller percentile of the layer",
    "movement": "-Σ gradient · w along a few steps of gradient descent",
    "taylor": "(gradient · w)²",
    "fisher": "½ w² · mean squared gradient",
    "snip": "|gradient · w|",
    "grasp": "w · Hessian · gradient",
    "synflow": "synaptic flow, without data",
    "wanda": "|w| · norm of the input",
}

#: Scores that may be negative.
SIGNED = ("magnitude-increase", "movement", "grasp")

ALLOCATIONS = {
    "global": "one ranking of all weights",
    "layerwise": "the rate in every layer, half of it in the output layer",
    "uniform": "the same density in every layer",
    "er": "Erdős–Rényi",
    "erk": "Erdős–Rényi with the kernel",
    "balanced": "the same number of weights in every layer",
    "lamp": "one ranking of weights scaled within their layers",
}

METHODS = {
    "dense": "the whole network",
    "imp": "iterative magnitude pruning, rewound to the initial weights",
    "imp-late": "the same, rewound to 5 % of the training",
    "imp-lr": "the same, with the learning rate rewound and the weights kept",
    "imp-tuned": "the same, fine-tuned at the last learning rate",
    "imp-cyclic": "imp-lr, each training several cycles of the learning rate",
    "one-shot": "magnitude pruning after one training, rewound",
    "early-bird": "pruned as soon as the mask settles, and trained on",
    "gradual": "Zhu & Gupta: pruned along a cubic during one training",
    "set": "SET: drop the small, regrow at random",
    "rigl": "RigL: drop the small, regrow where the gradient is large",
    "ste": "straight-through: the largest weights compute, all learn",
    "supermask": "Zhou et al.: random weights, a Bernoulli mask trained",
    "edge-popup": "Ramanujan et al.: random signs, scores trained",
    "snip": "SNIP at initialisation",
    "snip-shuffled": "its masks shuffled within layers",
    "snip-reinit": "its masks on new weights",
    "snip-inverted": "its best weights pruned",
    "grasp": "GraSP at initialisation",
    "grasp-shuffled": "its masks shuffled within layers",
    "grasp-reinit": "its masks on new weights",
    "grasp-inverted": "its best weights pruned",
    "synflow": "SynFlow at initialisation, in --synflow-rounds",
    "synflow-shuffled": "its masks shuffled within layers",
    "synflow-reinit": "its masks on new weights",
    "synflow-inverted": "its best weights pruned, at once",
    "magnitude-init": "magnitude at initialisation",
    "random-uniform": "random masks, the same density in every layer",
    "random-erk": "random masks, layers by ERK",
    "random-balanced": "random masks, the same number in every layer",
    "iterative-random-erk": "iterative random pruning by ERK, the weights kept",
    "iterative-random-balanced": "iterative random pruning, balanced, the weights kept",
}
