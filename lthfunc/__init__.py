"""Lottery-ticket research in PyTorch, written as pure functions over parameter trees.

This file is the table of contents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lthfunc.lazy import table_of_contents

if TYPE_CHECKING:
    from lthfunc import data as data, models as models
    from lthfunc.data.augment import shift_and_mirror as shift_and_mirror
    from lthfunc.errors import UserError as UserError
    from lthfunc.experiments.iterative import Plan as Plan, Round as Round, iterative as iterative
    from lthfunc.sparse.engine import sparse_engine as sparse_engine
    from lthfunc.sparse.inference import sparse_program as sparse_program
    from lthfunc.sparse.mixed import sparse_or as sparse_or
    from lthfunc.sparse.packing import pack as pack, unpack as unpack
    from lthfunc.sparsify.allocation import as_given as as_given, globally as globally, layerwise as layerwise
    from lthfunc.sparsify.rewinding import (
        finetune as finetune,
        reinitialised as reinitialised,
        restart as restart,
        rewound as rewound,
        shuffled as shuffled,
    )
    from lthfunc.sparsify.scores import magnitude as magnitude, random_scores as random_scores
    from lthfunc.sparsify.selection import unstructured as unstructured
    from lthfunc.sparsify.transforms import prune as prune, rewind as rewind, ticket as ticket
    from lthfunc.training.loop import (
        accuracy_on as accuracy_on,
        fit as fit,
        fit_together as fit_together,
        make_trainer as make_trainer,
        take_steps as take_steps,
        train as train,
    )
    from lthfunc.training.memory import hold_memory as hold_memory
    from lthfunc.training.optimizers import Optimizer as Optimizer, adam as adam, adamw as adamw, sgd as sgd
    from lthfunc.training.schedules import (
        constant as constant,
        cosine as cosine,
        stepwise as stepwise,
        warmup as warmup,
    )
    from lthfunc.training.steps import (
        cross_entropy as cross_entropy,
        make_eval_step as make_eval_step,
        make_train_step as make_train_step,
        with_optimizer as with_optimizer,
    )
    from lthfunc.trees.files import (
        load_ticket as load_ticket,
        load_tree as load_tree,
        save_ticket as save_ticket,
        save_tree as save_tree,
    )
    from lthfunc.trees.fold import compose as compose, iterate as iterate
    from lthfunc.trees.model import (
        Model as Model,
        as_built as as_built,
        from_module as from_module,
        glorot_normal as glorot_normal,
        init as init,
    )
    from lthfunc.trees.ops import (
        apply_masks as apply_masks,
        count as count,
        density as density,
        layer_counts as layer_counts,
        same_bits as same_bits,
        tree_map as tree_map,
    )
    from lthfunc.trees.types import (
        Dataset as Dataset,
        Scale as Scale,
        Split as Split,
        Ticket as Ticket,
        TrainState as TrainState,
    )

__version__ = "0.1.0"

__getattr__, __all__ = table_of_contents(
    __name__,
    {
        "lthfunc.trees.types": ("Dataset", "Scale", "Split", "Ticket", "TrainState"),
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
        "lthfunc.training.loop": ("accuracy_on", "fit", "fit_together", "make_trainer", "take_steps", "train"),
        "lthfunc.training.memory": ("hold_memory",),
        "lthfunc.sparse.engine": ("sparse_engine",),
        "lthfunc.sparse.mixed": ("sparse_or",),
        "lthfunc.sparse.inference": ("sparse_program",),
        "lthfunc.sparse.packing": ("pack", "unpack"),
        "lthfunc.data.augment": ("shift_and_mirror",),
        "lthfunc.experiments.iterative": ("Plan", "Round", "iterative"),
        "lthfunc.errors": ("UserError",),
    },
    rooms=("data", "models"),
)
