"""Methods by name: the functions of `families.METHODS`."""

from __future__ import annotations

from lthfunc.experiments.methods import at_init, iterative, through_masks, while_training
from lthfunc.experiments.methods.setting import Method

TABLE: dict[str, Method] = {
    "dense": iterative.dense,
    "imp": iterative.imp,
    "imp-late": iterative.imp_late,
    "imp-lr": iterative.imp_lr,
    "imp-tuned": iterative.imp_tuned,
    "imp-cyclic": iterative.cyclic,
    "one-shot": iterative.one_shot,
    "early-bird": while_training.early_bird,
    "gradual": while_training.gradual,
    "set": while_training.set_,
    "rigl": while_training.rigl,
    "ste": through_masks.straight,
    "supermask": through_masks.supermask,
    "edge-popup": through_masks.edge_popup,
    "snip": at_init.snip,
    "snip-shuffled": at_init.snip_shuffled,
    "snip-reinit": at_init.snip_reinit,
    "snip-inverted": at_init.snip_inverted,
    "grasp": at_init.grasp,
    "grasp-shuffled": at_init.grasp_shuffled,
    "grasp-reinit": at_init.grasp_reinit,
    "grasp-inverted": at_init.grasp_inverted,
    "synflow": at_init.synflow,
    "synflow-shuffled": at_init.synflow_shuffled,
    "synflow-reinit": at_init.synflow_reinit,
    "synflow-inverted": at_init.synflow_inverted,
    "magnitude-init": at_init.magnitude_at_init,
    "random-uniform": at_init.random_uniform,
    "random-erk": at_init.random_erk,
    "random-balanced": at_init.random_balanced,
    "iterative-random-erk": iterative.random_erk,
    "iterative-random-balanced": iterative.random_balanced,
}
