"""Lottery-ticket research in PyTorch, written as pure functions over parameter trees.

This file is the table of contents: the imports say where each name lies, and happen when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lthfunc.lazy import lazy_exports

if TYPE_CHECKING:
    from lthfunc import data as data, models as models
    from lthfunc.data.augment.colors import color_jitter as color_jitter
    from lthfunc.data.augment.crops import random_resized_crop as random_resized_crop
    from lthfunc.data.augment.draws import uniform_draws as uniform_draws
    from lthfunc.data.augment.erasing import cutout as cutout, random_erasing as random_erasing
    from lthfunc.data.augment.mixing import cutmix as cutmix, mixup as mixup, mixup_or_cutmix as mixup_or_cutmix
    from lthfunc.data.augment.policies import rand_augment as rand_augment
    from lthfunc.data.augment.sequences import augmentations as augmentations
    from lthfunc.data.augment.shifts import (
        mirror as mirror,
        shift as shift,
        shift_and_mirror as shift_and_mirror,
    )
    from lthfunc.deployment.compaction.compact import Compacted as Compacted, compact as compact, put_back as put_back
    from lthfunc.deployment.compaction.compact_engine import compact_engine as compact_engine
    from lthfunc.deployment.compaction.dependency_groups import dependency_groups as dependency_groups
    from lthfunc.deployment.cost import cost as cost
    from lthfunc.deployment.specialize import specialize as specialize
    from lthfunc.deployment.specialized_module import SpecializedModule as SpecializedModule
    from lthfunc.deployment.tuning_cache import tunings_file as tunings_file
    from lthfunc.distributed.collectives import Collectives as Collectives, collectives as collectives
    from lthfunc.distributed.dtensors import (
        load_sharded as load_sharded,
        save_sharded as save_sharded,
        sharded as sharded,
        unsharded as unsharded,
    )
    from lthfunc.energy.breakeven import BreakEven as BreakEven, Costs as Costs, break_even as break_even
    from lthfunc.errors import ArgumentError as ArgumentError, UserError as UserError
    from lthfunc.experiments.connectivity import instability as instability, line as line
    from lthfunc.experiments.iterative import Plan as Plan, Round as Round
    from lthfunc.experiments.rewinding_and_controls import RoundContext as RoundContext, Start as Start
    from lthfunc.experiments.trained_masks import TrainedMasks as TrainedMasks
    from lthfunc.experiments.trainings import iterative as iterative
    from lthfunc.loops.attach import attach as attach
    from lthfunc.loops.attached import Attached as Attached
    from lthfunc.loops.sparse_module import SparseModule as SparseModule, sparse_module as sparse_module
    from lthfunc.loops.trainers import (
        lightning_callback as lightning_callback,
        transformers_callback as transformers_callback,
    )
    from lthfunc.models.mask_files import ticket_from as ticket_from
    from lthfunc.sparse.decoding import (
        DecodingProgram as DecodingProgram,
        decoding_program as decoding_program,
        generate as generate,
    )
    from lthfunc.sparse.engine import sparse_engine as sparse_engine
    from lthfunc.sparse.inference import sparse_program as sparse_program
    from lthfunc.sparse.packed_state import (
        init_packed as init_packed,
        load_packed as load_packed,
        save_packed as save_packed,
    )
    from lthfunc.sparse.packed_training import packed_accuracy as packed_accuracy, train_packed as train_packed
    from lthfunc.sparse.sparse_or_dense import sparse_or as sparse_or
    from lthfunc.sparsify.activations import input_moments as input_moments, wanda as wanda
    from lthfunc.sparsify.alignment import align_units as align_units, permute_units as permute_units
    from lthfunc.sparsify.allocation import (
        Allocate as Allocate,
        fixed_counts as fixed_counts,
        globally as globally,
        layerwise as layerwise,
    )
    from lthfunc.sparsify.block_budgets import (
        BlockBudgets as BlockBudgets,
        alpha_pruning as alpha_pruning,
        owl as owl,
        same_density as same_density,
    )
    from lthfunc.sparsify.budgets import (
        balanced as balanced,
        erdos_renyi as erdos_renyi,
        erk as erk,
        globally_with_minimum as globally_with_minimum,
        lamp as lamp,
        uniform as uniform,
    )
    from lthfunc.sparsify.density_schedules import (
        by_rate as by_rate,
        cubic as cubic,
        geometric as geometric,
        one_shot as one_shot,
        periodic as periodic,
        prune_to_densities as prune_to_densities,
    )
    from lthfunc.sparsify.dependencies import (
        dead_units as dead_units,
        dependencies as dependencies,
        without_dead_units as without_dead_units,
    )
    from lthfunc.sparsify.drop_and_grow import (
        cosine_drop_fraction as cosine_drop_fraction,
        drop as drop,
        drop_and_grow as drop_and_grow,
        grow as grow,
        linear_drop_fraction as linear_drop_fraction,
        under_new_masks as under_new_masks,
    )
    from lthfunc.sparsify.gradient_scores import (
        fisher as fisher,
        grasp as grasp,
        mean_gradient as mean_gradient,
        movement as movement,
        snip as snip,
        taylor as taylor,
    )
    from lthfunc.sparsify.group_selection import prune_groups as prune_groups, whole_groups as whole_groups
    from lthfunc.sparsify.groups import (
        DependencyGroup as DependencyGroup,
        GroupPart as GroupPart,
        group_scores as group_scores,
        without_dead_groups as without_dead_groups,
    )
    from lthfunc.sparsify.growth import random_growth as random_growth
    from lthfunc.sparsify.mask_comparison import (
        collapsed_layers as collapsed_layers,
        mask_distance as mask_distance,
        mask_overlap as mask_overlap,
    )
    from lthfunc.sparsify.mask_criteria import (
        distance_moved as distance_moved,
        large_init as large_init,
        large_init_large_final as large_init_large_final,
        magnitude_increase as magnitude_increase,
    )
    from lthfunc.sparsify.rewinding import (
        constant_sign as constant_sign,
        finetuned as finetuned,
        inverted_masks as inverted_masks,
        learning_rate_rewound as learning_rate_rewound,
        reinitialised as reinitialised,
        rewound as rewound,
        shuffled_masks as shuffled_masks,
    )
    from lthfunc.sparsify.scores import (
        Score as Score,
        checked_score as checked_score,
        inverted_score as inverted_score,
        magnitude as magnitude,
        random_scores as random_scores,
    )
    from lthfunc.sparsify.sequential import (
        LayerPruning as LayerPruning,
        prune_sequentially as prune_sequentially,
        sparsegpt_pruning as sparsegpt_pruning,
        wanda_pruning as wanda_pruning,
    )
    from lthfunc.sparsify.sharded_pruning import (
        globally_on as globally_on,
        layerwise_on as layerwise_on,
        prune_sharded as prune_sharded,
    )
    from lthfunc.sparsify.sparsegpt import sparsegpt as sparsegpt
    from lthfunc.sparsify.structures import (
        Select as Select,
        blocks as blocks,
        has_blocks as has_blocks,
        has_n_of_m as has_n_of_m,
        has_units as has_units,
        n_of_m as n_of_m,
        per_output as per_output,
        units as units,
        unstructured as unstructured,
    )
    from lthfunc.sparsify.survivor_pruning import prune_survivors as prune_survivors
    from lthfunc.sparsify.synflow import synflow as synflow
    from lthfunc.sparsify.topology import ch3_l3 as ch3_l3
    from lthfunc.sparsify.transforms import prune as prune, rewind as rewind, ticket as ticket
    from lthfunc.training.accumulation import accumulate as accumulate
    from lthfunc.training.averaging import averaged as averaged, ema as ema, swa as swa
    from lthfunc.training.batches import sample_batches as sample_batches
    from lthfunc.training.chain import ChainContext as ChainContext, Part as Part, chain as chain
    from lthfunc.training.clipping import clip_by_global_norm as clip_by_global_norm, clip_by_value as clip_by_value
    from lthfunc.training.distillation import (
        attention_transfer as attention_transfer,
        distillation as distillation,
        feature_matching as feature_matching,
        teacher_divergence as teacher_divergence,
    )
    from lthfunc.training.gradient_growth import gradient_growth as gradient_growth
    from lthfunc.training.language import (
        label_smoothed_next_token as label_smoothed_next_token,
        next_token as next_token,
        perplexity as perplexity,
    )
    from lthfunc.training.lion import lion as lion
    from lthfunc.training.lookahead import lookahead as lookahead
    from lthfunc.training.loop import (
        accuracy_on as accuracy_on,
        fit as fit,
        fit_together as fit_together,
        take_steps as take_steps,
        train as train,
    )
    from lthfunc.training.loss_context import LossContext as LossContext, with_context as with_context
    from lthfunc.training.loss_of_params import forward_of as forward_of, loss_of as loss_of
    from lthfunc.training.loss_terms import on_output as on_output, sum_of_losses as sum_of_losses
    from lthfunc.training.losses import (
        Loss as Loss,
        Metric as Metric,
        accuracy as accuracy,
        cross_entropy as cross_entropy,
        huber as huber,
        label_smoothed_cross_entropy as label_smoothed_cross_entropy,
        mean_absolute_error as mean_absolute_error,
        mean_squared_error as mean_squared_error,
        r2 as r2,
        top_k as top_k,
    )
    from lthfunc.training.malloc import keep_freed_memory as keep_freed_memory
    from lthfunc.training.mask_updates import MaskUpdates as MaskUpdates, UpdateContext as UpdateContext
    from lthfunc.training.muon import muon as muon
    from lthfunc.training.optimizers import (
        Optimizer as Optimizer,
        adam as adam,
        adamw as adamw,
        all_but as all_but,
        is_matrix as is_matrix,
        sgd as sgd,
    )
    from lthfunc.training.parametrize import parametrized as parametrized, straight_through as straight_through
    from lthfunc.training.per_parameter import (
        decay_weights as decay_weights,
        layerwise_decay as layerwise_decay,
        scale_rates as scale_rates,
    )
    from lthfunc.training.results import (
        Checkpointer as Checkpointer,
        Fit as Fit,
        MaskChange as MaskChange,
        Stopped as Stopped,
    )
    from lthfunc.training.sam import sam as sam
    from lthfunc.training.schedules import (
        constant as constant,
        cosine as cosine,
        cyclic as cyclic,
        one_cycle as one_cycle,
        stepwise as stepwise,
        trapezoidal as trapezoidal,
        triangular as triangular,
        warmup as warmup,
    )
    from lthfunc.training.segmentation import (
        dice_cross_entropy as dice_cross_entropy,
        dice_loss as dice_loss,
        mean_iou as mean_iou,
        pixel_accuracy as pixel_accuracy,
        pixel_cross_entropy as pixel_cross_entropy,
    )
    from lthfunc.training.sharded_step import make_sharded_step as make_sharded_step
    from lthfunc.training.steps import (
        make_eval_step as make_eval_step,
        make_train_step as make_train_step,
        with_optimizer as with_optimizer,
    )
    from lthfunc.training.trainer import Trainer as Trainer, make_trainer as make_trainer
    from lthfunc.trees.convert import from_pruned as from_pruned, to_module as to_module, with_new_head as with_new_head
    from lthfunc.trees.files import (
        load_ticket as load_ticket,
        load_tree as load_tree,
        save_ticket as save_ticket,
        save_tree as save_tree,
    )
    from lthfunc.trees.flax_layout import FlaxLayout as FlaxLayout, flax_layout as flax_layout
    from lthfunc.trees.flax_trees import (
        from_flax as from_flax,
        from_flax_tree as from_flax_tree,
        to_flax as to_flax,
        to_flax_tree as to_flax_tree,
    )
    from lthfunc.trees.initialisers import as_built as as_built, glorot_normal as glorot_normal
    from lthfunc.trees.model import (
        Model as Model,
        from_module as from_module,
        init as init,
        with_prunable as with_prunable,
    )
    from lthfunc.trees.ops import (
        apply_masks as apply_masks,
        count as count,
        density as density,
        layer_counts as layer_counts,
        same_bits as same_bits,
        tree_map as tree_map,
    )
    from lthfunc.trees.packed_states import (
        PackedState as PackedState,
        pack_state as pack_state,
        unpack_state as unpack_state,
    )
    from lthfunc.trees.packing import pack as pack, unpack as unpack
    from lthfunc.trees.transformations import compose as compose, iterate as iterate
    from lthfunc.trees.types import (
        Dataset as Dataset,
        NewMasks as NewMasks,
        Scale as Scale,
        Split as Split,
        Ticket as Ticket,
        TrainState as TrainState,
    )

__version__ = "0.2.0"

__getattr__, __dir__ = lazy_exports(__name__)
