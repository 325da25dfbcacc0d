"""Published methods of pruning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lthfunc.registry import Entry, Registry


@dataclass(frozen=True)
class MethodEntry(Entry):
    """at_init: whether it prunes untrained networks, so that it needs no dense training.

    settings: that it consists of; defaults: of those that it leaves to its user.
    """

    at_init: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)


_UNCHANGED = "at_init:unchanged"
#: The settings of when masks change, and of how many weights.
_PERIOD, _DROPS = ("update_every", "update_until"), ("drop_fraction", "drop_schedule")


def _method(
    about: str, source: str = "", target: str = _UNCHANGED, *, takes: tuple[str, ...] = (), once: bool = False,
    at_init: bool = False, defaults: Mapping[str, Any] | None = None, **settings: Any,
) -> MethodEntry:  # fmt: skip
    """target: "module:function" in `experiments/methods`. once: whether it has one round by default."""
    open_ = {**({"rounds": 1} if once else {}), **(defaults or {})}
    return MethodEntry(f".experiments.methods.{target}", about, source, takes, None, "", at_init, settings, open_)


def _iterative(about: str, source: str = "", **settings: Any) -> MethodEntry:
    """Rounds of training and pruning with some settings."""
    return _method(about, source, **settings)


def _untrained(about: str, source: str = "", target: str = _UNCHANGED, **more: Any) -> MethodEntry:
    """One training, of a network that is pruned before it."""
    return _method(about, source, target, once=True, at_init=True, rewind="init", **more)


def _score_at_init(
    name: str, about: str, source: str, inverted: str = "its best weights pruned", rounds: int = 1
) -> dict[str, MethodEntry]:
    """A score at initialisation, and the controls of Frankle et al. 2021, sec. 5."""
    controls, more = "Frankle et al. 2021, sec. 5", {"takes": ("score_rounds",), "defaults": {"score_rounds": rounds}}
    return {
        name: _untrained(about, source, "at_init:several_rounds", score=name, **more),
        f"{name}-shuffled": _untrained(
            "its masks shuffled within layers", controls, "at_init:shuffled", score=name, **more
        ),
        f"{name}-reinit": _untrained(
            "its masks on new weights", controls, "at_init:with_new_weights", score=name, **more
        ),
        f"{name}-inverted": _untrained(inverted, controls, "at_init:inverted", score=name),
    }


def _during(about: str, source: str, target: str, takes: tuple[str, ...], **more: Any) -> MethodEntry:
    """One training, in which masks change."""
    return _untrained(about, source, f"during_training:{target}", takes=takes, compact=False, **more)


def _exchanging(
    about: str, source: str, target: str = "during_training:exchanging", *, takes: tuple[str, ...] = (),
    defaults: Mapping[str, Any], **settings: Any,
) -> MethodEntry:  # fmt: skip
    """One training in which weights are dropped and others grown, from random masks unless `score` is another."""
    usual = {"update_until": 0.75, "drop_fraction": 0.3, "drop_schedule": "cosine"}
    settings = {"score": "random", "structure": "unstructured", "compact": False, **settings}
    return _untrained(
        about, source, target, takes=(*_PERIOD, *_DROPS, "growth", *takes), defaults={**usual, **defaults}, **settings
    )


def _trained_masks(about: str, source: str, target: str, allocate: str) -> MethodEntry:
    """One training, of what masks are computed from."""
    return _untrained(
        about, source, f"trained_masks:{target}", score="magnitude", allocate=allocate, structure="unstructured",
        compact=False,
    )  # fmt: skip


def _gated(about: str, source: str, target: str, gate_rate: float) -> MethodEntry:
    """One training, of gates or thresholds as well as weights."""
    return _untrained(
        about, source, f"trained_gates:{target}", takes=("gate_rate",), defaults={"gate_rate": gate_rate},
        score="magnitude", structure="unstructured", compact=False,
    )  # fmt: skip


def _block_by_block(target: str, about: str, source: str, **settings: Any) -> MethodEntry:
    """One pruning of the trained network, for the inputs that its layers get."""
    return _method(
        about, source, f"block_by_block:{target}", takes=("blocks", "block_budgets"), once=True,
        defaults={"rewind": "lr", "block_budgets": "same"}, score="magnitude", allocate="uniform", min_layer_weights=0,
        **settings,
    )  # fmt: skip


_RANDOM_LR = {"score": "random", "rewind": "lr"}

#: A plan of iterative magnitude pruning with the method's settings, and the settings it takes -> the method's plan.
METHODS = Registry("methods", "--method", {
    "imp": _iterative("iterative magnitude pruning, rewound to the initial weights", "Frankle & Carbin 2019"),
    "dense": _iterative("the whole network", rounds=0),
    "imp-late": _iterative("the same, rewound to 5 % of the training", "Frankle et al. 2020", rewind="percent:5"),
    "imp-lr": _iterative(
        "the same, with the learning rate rewound and the weights kept", "Renda et al. 2020, sec. 2", rewind="lr",
    ),
    "imp-tuned": _iterative(
        "the same, fine-tuned at the last learning rate", "Renda et al. 2020, sec. 2", rewind="last-lr",
    ),
    "imp-cyclic": _iterative(
        "imp-lr, each training several cycles of the learning rate", "Gadhikar et al. 2024", rewind="lr",
        schedule="cyclic",
    ),
    "one-shot": _iterative("magnitude pruning after one training, rewound", rounds=1),
    "swamp": _method(
        "SWAMP: several networks trained in each round, their mean pruned", "Choi et al. 2024", "swamp:swamp",
        takes=("particles",), defaults={"particles": 4}, compact=False,
    ),
    "rebasin": _method(
        "the mask of one training permuted for other initial weights", "Adnan et al. 2025", "rebasin:rebasin", rounds=1,
        compact=False,
    ),
    "group-lasso": _method(
        "units shrunk while the dense network trains, the smallest pruned", "Wen et al. 2016",
        "group_lasso:group_lasso", takes=("shrinkage",), once=True, defaults={"shrinkage": 2.0, "rewind": "lr"},
        score="magnitude", allocate="uniform", structure="unstructured", compact=False,
    ),
    "sparsegpt": _block_by_block(
        "sparsegpt", "pruned block by block after training, the remaining weights making up for it",
        "Frantar & Alistarh 2023", structure="unstructured",
    ),
    "wanda": _block_by_block(
        "wanda", "pruned block by block after training, by |w| · norm of the input", "Sun et al. 2024",
    ),
    "early-bird": _during(
        "pruned as soon as the mask settles, and trained on", "You et al. 2020", "early_bird", ("update_every",),
        score="magnitude",
    ),
    "gradual": _during(
        "Zhu & Gupta: pruned along a cubic during one training", "Zhu & Gupta 2017", "gradual",
        _PERIOD, score="magnitude", defaults={"update_until": 0.75},
    ),
    "set": _exchanging(
        "SET: drop the small, regrow at random", "Mocanu et al. 2018", defaults={"growth": "random", "allocate": "erk"},
    ),
    "rigl": _exchanging(
        "RigL: drop the small, regrow where the gradient is large", "Evci et al. 2020",
        defaults={"growth": "gradient", "allocate": "erk"},
    ),
    "acdc": _untrained(
        "AC/DC: sparse and dense phases in turn", "Peste et al. 2021", "acdc:acdc", takes=_PERIOD, compact=False,
        score="magnitude", defaults={"update_until": 0.85},
    ),
    "granet": _exchanging(
        "GraNet: pruned along a cubic, and regrown where the gradient is large", "Liu et al. 2021", "granet:granet",
        score="magnitude", defaults={"growth": "gradient", "drop_fraction": 0.5},
    ),
    "mest": _exchanging(
        "MEST: drop by |w| and gradient, regrow at random", "Yuan et al. 2021", "mest:mest", takes=("gradient_weight",),
        defaults={"growth": "random", "allocate": "uniform", "drop_fraction": 0.2, "gradient_weight": 0.01},
    ),
    "srigl": _exchanging(
        "SRigL: RigL with as many weights for each neuron, leaving some neurons out", "Lasby et al. 2024",
        "srigl:srigl", takes=("min_salient",), structure="per-output", exempt=(),
        defaults={"growth": "gradient", "allocate": "erk", "min_salient": 0.3},
    ),
    "cht": _exchanging(
        "CHT: drop the small, regrow where paths of three links end", "Zhang et al. 2024", "cht:cht",
        defaults={"growth": "ch3-l3", "allocate": "erk", "drop_schedule": "constant"},
    ),
    "ste": _trained_masks("straight-through: the largest weights compute, all learn", "", "straight", "erk"),
    "top-kast": _untrained(
        "Top-KAST: the largest weights compute, more of them learn", "Jayakumar et al. 2020", "top_kast:top_kast",
        takes=("backward_density",), score="magnitude", allocate="uniform", structure="unstructured", compact=False,
    ),
    "str": _gated(
        "STR: a soft threshold trained for each layer", "Kusupati et al. 2020", "soft_threshold", 50.0,
    ),
    "continuous-sparsification": _gated(
        "every weight's gate trained, and sharpened", "Savarese et al. 2020", "continuous", 1.0,
    ),
    "l0": _gated("L0: the chances of hard concrete gates trained", "Louizos et al. 2018", "l0", 50.0),
    "supermask": _trained_masks(
        "Zhou et al.: random weights, a Bernoulli mask trained", "Zhou et al. 2019, sec. 5", "supermask", "uniform",
    ),
    "edge-popup": _trained_masks(
        "Ramanujan et al.: random signs, scores trained", "Ramanujan et al. 2020", "edge_popup", "uniform",
    ),
    "sign-in": _untrained(
        "Sign-In: random masks, weights as products of two factors", "Gadhikar et al. 2025", "sign_in:sign_in",
        takes=("rescale_every",), defaults={"allocate": "erk", "score": "random"}, compact=False,
    ),
    **_score_at_init("snip", "SNIP at initialisation", "Lee et al. 2019"),
    **_score_at_init("grasp", "GraSP at initialisation", "Wang et al. 2020"),
    **_score_at_init(
        "synflow", "SynFlow at initialisation, in --score-rounds", "Tanaka et al. 2020",
        "its best weights pruned, at once", rounds=100,
    ),
    "force": _untrained(
        "FORCE: SNIP in --score-rounds, in which pruned weights may come back", "de Jorge et al. 2021", "at_init:force",
        takes=("score_rounds",), defaults={"score_rounds": 30}, score="snip",
    ),
    "magnitude-init": _untrained("magnitude at initialisation", "Frankle et al. 2021", score="magnitude"),
    "random-uniform": _untrained(
        "random masks, the same density in every layer", score="random", allocate="uniform",
    ),
    "random-erk": _untrained("random masks, layers by ERK", "Liu et al. 2022", score="random", allocate="erk"),
    "random-balanced": _untrained(
        "random masks, the same number in every layer", "Gadhikar et al. 2023", score="random", allocate="balanced",
    ),
    "iterative-random-erk": _iterative(
        "iterative random pruning by ERK, the weights kept", "Gadhikar et al. 2024", allocate="erk", **_RANDOM_LR,
    ),
    "iterative-random-balanced": _iterative(
        "iterative random pruning, balanced, the weights kept", "Gadhikar et al. 2024", allocate="balanced",
        **_RANDOM_LR,
    ),
}, own_takes=True)  # fmt: skip


def method_entry(name: str) -> MethodEntry:
    """What is known of a method; of a function of one's own, nothing."""
    return METHODS.get(name, MethodEntry("", ""))
