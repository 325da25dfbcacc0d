"""Lottery-ticket research in PyTorch, written as pure functions over parameter trees.

This file is the table of contents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lthfunc.lazy import table_of_contents

if TYPE_CHECKING:
    from lthfunc import data, models
    from lthfunc.data.augment import shift_and_mirror
    from lthfunc.errors import UserError
    from lthfunc.experiments.iterative import Plan, Round, iterative
    from lthfunc.sparsify.allocation import as_given, globally, layerwise
    from lthfunc.sparsify.rewinding import finetune, reinitialised, restart, rewound, shuffled
    from lthfunc.sparsify.scores import magnitude, random_scores
    from lthfunc.sparsify.selection import unstructured
    from lthfunc.sparsify.transforms import prune, rewind, ticket
    from lthfunc.training.compiling import compiled
    from lthfunc.training.loop import accuracy_on, fit, make_trainer, take_steps, train
    from lthfunc.training.optimizers import Optimizer, adam, adamw, sgd
    from lthfunc.training.schedules import constant, cosine, stepwise, warmup
    from lthfunc.training.steps import cross_entropy, make_eval_step, make_train_step, with_optimizer
    from lthfunc.trees.files import load_ticket, load_tree, save_ticket, save_tree
    from lthfunc.trees.fold import compose, iterate
    from lthfunc.trees.model import Model, as_built, from_module, glorot_normal, init
    from lthfunc.trees.ops import apply_masks, count, density, layer_counts, same_bits, tree_map
    from lthfunc.trees.types import Dataset, Split, Ticket, TrainState

__version__ = "0.1.0"

__getattr__, __all__ = table_of_contents(
    __name__,
    {
        "lthfunc.trees.types": ("Dataset", "Split", "Ticket", "TrainState"),
        "lthfunc.trees.model": ("Model", "as_built", "from_module", "glorot_normal", "init"),
        "lthfunc.trees.ops": ("apply_masks", "count", "density", "layer_counts", "same_bits", "tree_map"),
        "lthfunc.trees.fold": ("compose", "iterate"),
        "lthfunc.trees.files": ("load_ticket", "load_tree", "save_ticket", "save_tree"),
        "lthfunc.sparsify.scores": ("magnitude", "random_scores"),
        "lthfunc.sparsify.allocation": ("as_given", "globally", "layerwise"),
        "lthfunc.sparsify.selection": ("unstructured",),
        "lthfunc.sparsify.rewinding": ("finetune", "reinitialised", "restart", "rewound", "shuffled"),
        "lthfunc.sparsify.transforms": ("prune", "rewind", "ticket"),
        "lthfunc.training.schedules": ("constant", "cosine", "stepwise", "warmup"),
        "lthfunc.training.optimizers": ("Optimizer", "adam", "adamw", "sgd"),
        "lthfunc.training.steps": ("cross_entropy", "make_eval_step", "make_train_step", "with_optimizer"),
        "lthfunc.training.compiling": ("compiled",),
        "lthfunc.training.loop": ("accuracy_on", "fit", "make_trainer", "take_steps", "train"),
        "lthfunc.data.augment": ("shift_and_mirror",),
        "lthfunc.experiments.iterative": ("Plan", "Round", "iterative"),
        "lthfunc.errors": ("UserError",),
    },
    rooms=("data", "models"),
)
