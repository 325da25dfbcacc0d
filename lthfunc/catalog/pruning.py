"""How networks are pruned, and where pruned networks start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lthfunc.registry import Entry, Registry


@dataclass(frozen=True)
class ScoreEntry(Entry):
    """signed: scores may be negative."""

    signed: bool = False


@dataclass(frozen=True)
class StructureEntry(Entry):
    """rows: whether it treats a weight's rows as outputs."""

    rows: bool = True


@dataclass(frozen=True)
class StartEntry(Entry):
    """at_anchor: training begins at the anchor's step. early: it uses weights from the dense training's beginning."""

    at_anchor: bool = False
    early: bool = False


#: (params, masks) -> scores, or what makes such a function of what `functions.ScoreContext.offered` has.
SCORES = Registry("scores", "--score", {
    "magnitude": ScoreEntry(".sparsify.scores:magnitude", "|w|", "Han et al. 2015, sec. 3"),
    "random": ScoreEntry(".experiments.functions:random_score", "uniform", "Frankle & Carbin 2019, sec. 2"),
    "large-init": ScoreEntry(".sparsify.mask_criteria:large_init", "|w| at the start", "Zhou et al. 2019, sec. 3"),
    "magnitude-increase": ScoreEntry(
        ".sparsify.mask_criteria:magnitude_increase", "growth of |w| since the start", "Zhou et al. 2019, sec. 3",
        signed=True,
    ),
    "distance-moved": ScoreEntry(
        ".sparsify.mask_criteria:distance_moved", "distance from the start", "Zhou et al. 2019, sec. 3",
    ),
    "large-init-large-final": ScoreEntry(
        ".sparsify.mask_criteria:large_init_large_final", "|w| then and now, the smaller percentile of the layer",
        "Zhou et al. 2019, sec. 3",
    ),
    "movement": ScoreEntry(
        ".sparsify.gradient_scores:movement", "-Σ gradient · w along a few steps of gradient descent",
        "Sanh et al. 2020, eq. 3", signed=True,
    ),
    "taylor": ScoreEntry(".sparsify.gradient_scores:taylor", "(gradient · w)²", "Molchanov et al. 2019, eq. 8"),
    "fisher": ScoreEntry(".sparsify.gradient_scores:fisher", "½ w² · mean squared gradient", "Theis et al. 2018"),
    "snip": ScoreEntry(".sparsify.gradient_scores:snip", "|gradient · w|", "Lee et al. 2019"),
    "grasp": ScoreEntry(".sparsify.gradient_scores:grasp", "w · Hessian · gradient", "Wang et al. 2020", signed=True),
    "synflow": ScoreEntry(".sparsify.synflow:synflow", "synaptic flow, without data", "Tanaka et al. 2020"),
    "wanda": ScoreEntry(".sparsify.activations:wanda", "|w| · norm of the input", "Sun et al. 2024, eq. 1"),
})  # fmt: skip

#: (scores, masks, fraction) -> weights to keep in each layer, or what makes such a function.
ALLOCATIONS = Registry("allocations", "--allocate", {
    "global": Entry(
        ".experiments.functions:global_allocation", "one ranking of all weights", takes=("min_layer_weights",),
    ),
    "layerwise": Entry(
        ".experiments.functions:layerwise_allocation", "the rate in every layer, half of it in the output layer",
        "Frankle & Carbin 2019, sec. 2", takes=("layer_rate",),
    ),
    "uniform": Entry(".sparsify.budgets:uniform", "the same density in every layer", takes=("min_layer_weights",)),
    "er": Entry(
        ".sparsify.budgets:erdos_renyi", "Erdős–Rényi", "Mocanu et al. 2018, eq. 3", takes=("min_layer_weights",),
    ),
    "erk": Entry(
        ".sparsify.budgets:erk", "Erdős–Rényi with the kernel", "Evci et al. 2020, sec. 3.1",
        takes=("min_layer_weights",),
    ),
    "balanced": Entry(
        ".sparsify.budgets:balanced", "the same number of weights in every layer", "Gadhikar et al. 2023, sec. 3",
        takes=("min_layer_weights",),
    ),
    "lamp": Entry(
        ".sparsify.budgets:lamp", "one ranking of weights scaled within their layers", "Lee et al. 2021, eq. 2",
    ),
})  # fmt: skip

#: (scores, masks, keep) -> masks, or what makes such a function.
STRUCTURES = Registry("structures", "--structure", {
    "unstructured": StructureEntry(".sparsify.structures:unstructured", "single weights", rows=False),
    "per-output": StructureEntry(
        ".sparsify.structures:per_output", "the same number of weights for every output", "Sun et al. 2024, sec. 3",
        takes=("exempt",),
    ),
    "units": StructureEntry(
        ".experiments.functions:units_but_outputs", "whole neurons and channels", takes=("exempt",), rows=False,
    ),
    "heads": StructureEntry(
        ".experiments.functions:whole_heads", "whole attention heads; with grouped queries, all heads that share a key",
        "Michel et al. 2019", takes=("exempt", "group_multiple"), rows=False,
    ),
    "residual": StructureEntry(
        ".experiments.functions:residual_dimensions", "whole dimensions of residual streams and embeddings",
        takes=("exempt", "group_multiple"), rows=False,
    ),
    "groups": StructureEntry(
        ".experiments.functions:groups_of_all_kinds",
        "heads, residual dimensions, neurons and channels, with all that goes together", "Fang et al. 2023",
        takes=("exempt", "group_multiple"), rows=False,
    ),
    "N:M": StructureEntry(
        ".sparsify.structures:n_of_m", "at most N of every M consecutive inputs", "Mishra et al. 2021",
        takes=("exempt",), pattern=r"(?P<n>[1-9]\d*):(?P<m>[1-9]\d*)", example="2:4",
    ),
    "RxC": StructureEntry(
        ".sparsify.structures:blocks", "whole blocks of R outputs by C inputs", takes=("exempt",),
        pattern=r"(?P<rows>[1-9]\d*)x(?P<columns>[1-9]\d*)", example="16x16",
    ),
})  # fmt: skip


def _start(function: str, about: str, source: str = "", **more: Any) -> StartEntry:
    return StartEntry(f".experiments.rewinding_and_controls:{function}", about, source, **more)


_FROM_STEP = r"(:(?P<step>\d+))?"

#: (pruned network, RoundContext) -> what is trained; a user's is (pruned network, anchor) -> what is trained.
REWINDINGS = Registry("rewindings", "--rewind", {
    "init": _start(
        "to_anchor", "the initial weights, the winning ticket", "Frankle & Carbin 2019", at_anchor=True, early=True,
    ),
    "step:K": _start(
        "to_anchor", "the weights of step K", "Frankle et al. 2020", pattern=r"step:(?P<step>\d+)", example="step:",
        at_anchor=True, early=True,
    ),
    "epoch:K": _start(
        "to_anchor", "the weights after epoch K", "Frankle et al. 2020", pattern=r"epoch:(?P<epoch>\d+)",
        example="epoch:", at_anchor=True, early=True,
    ),
    "percent:K": _start(
        "to_anchor", "the weights after K % of the training", "Frankle et al. 2020, sec. 3",
        pattern=r"percent:(?P<percent>[1-9]\d?)", example="percent:5", at_anchor=True, early=True,
    ),
    "sign": _start(
        "to_signs", "the signs alone of the initial weights, sign:K of step K", "Zhou et al. 2019, sec. 4",
        pattern=f"sign{_FROM_STEP}", at_anchor=True, early=True,
    ),
    "lr": _start(
        "rate_to_anchor", "trained weights, the learning rate from its beginning, lr:K from step K",
        "Renda et al. 2020, sec. 2", pattern=f"lr{_FROM_STEP}", at_anchor=True,
    ),
    "none": _start("trained_weights", "trained weights, the learning rate from its beginning"),
    "last-lr": _start("at_last_rate", "fine-tuning: trained weights at the last learning rate", "Han et al. 2015"),
    "reinit": _start("drawn_anew", "new random weights", "Frankle & Carbin 2019, sec. 2"),
})  # fmt: skip

#: Makes a `BlockBudgets`.
BLOCK_BUDGETS = Registry("block-budgets", "--block-budgets", {
    "same": Entry(".sparsify.block_budgets:same_density", "the same density in every block"),
    "owl": Entry(
        ".sparsify.block_budgets:owl", "more where there are more outliers of |w| · norm of the input",
        "Yin et al. 2024, sec. 3.2",
    ),
    "alpha": Entry(
        ".sparsify.block_budgets:alpha_pruning", "more where spectra of weights have heavier tails",
        "Lu et al. 2024, sec. 3",
    ),
}, own=False)  # fmt: skip

#: What of `functions.ScoreContext.offered` it names -> a score of the weights to grow.
GROWTHS = Registry("growths", "--growth", {
    "random": Entry(".experiments.functions:random_growth_score", "uniform, as in SET", "Mocanu et al. 2018"),
    "gradient": Entry(
        ".experiments.functions:gradient_growth_score", "size of the dense gradient on a batch, as in RigL",
        "Evci et al. 2020, sec. 3",
    ),
    "ch3-l3": Entry(
        ".experiments.functions:topological_growth_score",
        "paths of three links between a missing link's ends, as in CHT", "Zhang et al. 2024, eq. 1",
    ),
})  # fmt: skip

#: (initial fraction, step, the last step) -> the fraction to drop.
DROP_SCHEDULES = Registry("drop-schedules", "--drop-schedule", {
    "cosine": Entry(
        ".sparsify.drop_and_grow:cosine_drop_fraction", "half a cosine, to 0", "Evci et al. 2020, sec. 3",
    ),
    "linear": Entry(".sparsify.drop_and_grow:linear_drop_fraction", "a straight line, to 0"),
    "constant": Entry(".sparsify.drop_and_grow:constant_drop_fraction", "always the same", "Mocanu et al. 2018"),
}, own=False)  # fmt: skip

#: The same as rewindings. Their names are parts of file names.
CONTROLS = Registry("controls", "--control", {
    "reinit": _start("reinit", "its mask on new random weights", "Frankle & Carbin 2019, sec. 2"),
    "random-mask": _start(
        "random_mask", "as many weights, drawn from the whole network", "Frankle & Carbin 2019, sec. 2", at_anchor=True,
    ),
    "layer-random-mask": _start(
        "layer_random_mask", "as many weights in each layer, nested from round to round", at_anchor=True,
    ),
    "shuffled-mask": _start(
        "shuffled_mask", "its mask shuffled within layers", "Frankle et al. 2021, sec. 5", at_anchor=True,
    ),
    "inverted-mask": _start("inverted_mask", "as many of the weights that it goes without", at_anchor=True),
}, own=False)  # fmt: skip
