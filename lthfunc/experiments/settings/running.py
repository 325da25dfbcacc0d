"""How and where trainings run, and what they write."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le

from lthfunc.catalog.data_sets import DATA_DIR_VARIABLE
from lthfunc.catalog.training import ENGINES
from lthfunc.experiments.settings.setting import FIRST, RUN, TRAINERS, WHAT, Count, setting

PRECISIONS = ("fp32", "tf32", "bf16")
ON_NONFINITE = ("stop", "skip")

#: Commands that write their trainings to a run.
_RUNS = ("prune", "train")


@dataclass(frozen=True)
class Running:
    """Settings of the run and the machine."""

    seed: Annotated[int, Ge(0), Le(2**62)] = setting(
        0, "Seed of the initial weights and of the order of the data.", RUN, TRAINERS, of_seeds=True
    )
    replicates: Count = setting(
        1, "Number of seeds to repeat it with (seed, seed+1, …); results are mean ± standard deviation.",
        FIRST, (*TRAINERS, "resume"), of_seeds=True,
    )  # fmt: skip
    device: str = setting(
        "auto", "Device: auto (the first GPU if there is one), cpu, cuda or cuda:N.",
        RUN, (*TRAINERS, "energy", "specialize"), offers=("auto", "cpu", "cuda"), decided=True,
    )  # fmt: skip
    engine: str = setting(
        "auto", f"How steps are run: {ENGINES.described}; or auto: {ENGINES.auto}; or module:function.",
        RUN, (*TRAINERS, "branch", "transfer"), names=ENGINES, decided=True, follows_data=True,
    )  # fmt: skip
    compact: bool = setting(
        False,
        "Remove inputs, units and channels that pruning has cut off before training; results differ only by rounding.",
        RUN, _RUNS,
    )  # fmt: skip
    precision: str = setting(
        "fp32",
        "Precision of matrix products and convolutions: fp32, tf32 (on a GPU) or bf16, in which the sparse engine only "
        "keeps some activations and gradients.",
        RUN, _RUNS, choices=PRECISIONS,
    )  # fmt: skip
    jobs: Count | None = setting(
        None,
        "Number of trainings (seeds and controls) to run at once: in threads or processes on a CPU, as one program "
        "on a GPU.",
        RUN, (*TRAINERS, "branch"), default="as many as the cores or the GPU's memory allow", changes_results=False,
        decided=True,
    )  # fmt: skip
    threads: Count | None = setting(
        None, "CPU threads of each training; at most 128, or four per core.",
        RUN, (*TRAINERS, "branch", "transfer"), default="1 for small networks, otherwise all cores", told=False,
        decided=True, follows_data=True,
    )  # fmt: skip
    executor: str = setting(
        "local",
        "Where trainings run: local, ray (a cluster of this machine's cores), or ray://HOST:PORT; results are the "
        "same.",
        RUN, TRAINERS, "WHERE", offers=("local", "ray"), changes_results=False, former_names=("on",),
    )  # fmt: skip
    gpu_share: Annotated[float, Gt(0), Le(1)] = setting(
        1.0, "With --executor ray, fraction of a GPU that each training uses; 0.25 runs four on one GPU.",
        RUN, TRAINERS, changes_results=False,
    )  # fmt: skip
    checkpoint_every: str = setting(
        "30s",
        "Save a checkpoint of each unfinished training every N steps or N seconds (30s), so that `lthfunc resume` "
        "can continue it; results are the same.",
        RUN, (*_RUNS, "methods", "branch", "transfer"), "N|Ns|never", changes_results=False,
    )  # fmt: skip
    packed: bool = setting(
        False,
        "Leave pruned weights out of the ticket files at the top as well, as out of a run's other files. They are "
        "smaller, and lthfunc reads them as before; for other programs there is `lthfunc export`.",
        RUN, (*_RUNS, "methods", "branch", "transfer"), changes_results=False,
    )  # fmt: skip
    on_nonfinite: str = setting(
        "stop",
        f"What to do at a step whose loss or gradient is not finite: {' or '.join(ON_NONFINITE)} (leave the state "
        "unchanged and take the next step).",
        RUN, (*_RUNS, "methods", "branch", "transfer"), choices=ON_NONFINITE,
        changes_results=False,  # or only what would have been none
    )  # fmt: skip
    energy: bool = setting(
        False,
        "Measure the energy of each training with codecarbon, per epoch and separately from evaluation; on a CPU, "
        "trainings then run one at a time.",
        RUN, TRAINERS, changes_results=False,
    )  # fmt: skip
    country: str | None = setting(
        None, "Country whose electricity mix determines the emissions: three letters of ISO 3166-1, such as DEU.",
        RUN, (*TRAINERS, "energy"), "ABC", default="USA, with a note", changes_results=False,
    )  # fmt: skip
    tensorboard: bool = setting(
        False, "Also write TensorBoard event files to RUN/tensorboard.", RUN, _RUNS, changes_results=False
    )
    wandb: bool = setting(
        False, "Also log to Weights & Biases, as WANDB_MODE and WANDB_PROJECT specify.",
        RUN, _RUNS, changes_results=False,
    )  # fmt: skip
    mlflow: bool = setting(
        False, "Also log to MLflow, at MLFLOW_TRACKING_URI or in RUN/mlflow.db.", RUN, _RUNS, changes_results=False
    )
    data_dir: str | None = setting(
        None, "Folder (or address) of the data sets, to which they are also downloaded.",
        WHAT, (*TRAINERS, "transfer", "info", "energy", "specialize", "generate", "export", "datasets show"),
        after="skip_broken", default=f"${DATA_DIR_VARIABLE}, or the user's cache", changes_results=False, path=True,
    )  # fmt: skip
