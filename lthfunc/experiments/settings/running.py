"""How and where trainings run, and what they write."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le

from lthfunc.catalog.data_sets import DATA_DIR_VARIABLE
from lthfunc.catalog.training import ENGINES
from lthfunc.experiments.settings.setting import RUN, TRAINERS, WHAT, Count, Setting

PRECISIONS = ("fp32", "tf32", "bf16")
ON_NONFINITE = ("stop", "skip")

#: Commands that write their trainings to a run.
_RUNS = ("prune", "train")


@dataclass(frozen=True)
class Running:
    """Settings of the run and the machine."""

    seed: Annotated[
        int, Ge(0), Le(2**62),
        Setting("Seed of the initial weights and of the order of the data.", RUN, TRAINERS, of_seeds=True),
    ] = 0  # fmt: skip
    replicates: Annotated[
        Count,
        Setting(
            "Number of seeds to run (seed, seed+1, …); results are mean ± standard deviation.",
            RUN, TRAINERS, of_seeds=True,
        ),
    ] = 1  # fmt: skip
    device: Annotated[
        str,
        Setting(
            "Device: auto (the first GPU if there is one), cpu, cuda or cuda:N.",
            RUN, (*TRAINERS, "energy", "specialize"), offers=("auto", "cpu", "cuda"), decided=True,
        ),
    ] = "auto"  # fmt: skip
    engine: Annotated[
        str,
        Setting(
            f"How steps are run: {ENGINES.described}; or auto: {ENGINES.auto}; or package.module:function.",
            RUN, (*TRAINERS, "branch", "transfer"), names=ENGINES, decided=True, follows_data=True,
        ),
    ] = "auto"  # fmt: skip
    compact: Annotated[
        bool,
        Setting(
            "Remove inputs, units and channels that pruning has cut off before training; results differ only by "
            "rounding.",
            RUN, _RUNS,
        ),
    ] = False  # fmt: skip
    precision: Annotated[
        str,
        Setting(
            "Precision of matrix products and convolutions: fp32, tf32 (on a GPU) or bf16.",
            RUN,
            _RUNS,
            choices=PRECISIONS,
        ),
    ] = "fp32"
    jobs: Annotated[
        Count | None,
        Setting(
            "Number of trainings (seeds and controls) to run at once: in threads or processes on a CPU, as one program "
            "on a GPU.",
            RUN, (*TRAINERS, "branch"), default="as many as the cores or the GPU's memory allow",
            changes_results=False, decided=True,
        ),
    ] = None  # fmt: skip
    threads: Annotated[
        Count | None,
        Setting(
            "CPU threads of each training; at most 128, or four per core.",
            RUN, (*TRAINERS, "branch", "transfer"), default="1 for small networks, otherwise all cores",
            told=False, decided=True, follows_data=True,
        ),
    ] = None  # fmt: skip
    executor: Annotated[
        str,
        Setting(
            "Where trainings run: local, ray (a cluster of this machine's cores), or ray://HOST:PORT; results are the "
            "same.",
            RUN, TRAINERS, "WHERE", offers=("local", "ray"), changes_results=False, former_names=("on",),
        ),
    ] = "local"  # fmt: skip
    gpu_share: Annotated[
        float, Gt(0), Le(1),
        Setting(
            "With --executor ray, fraction of a GPU that each training uses; 0.25 runs four on one GPU.",
            RUN, TRAINERS, changes_results=False,
        ),
    ] = 1.0  # fmt: skip
    checkpoint_every: Annotated[
        str,
        Setting(
            "Save a checkpoint of each unfinished training every N steps or N seconds (30s), so that `lthfunc resume` "
            "can continue it; results are the same.",
            RUN, (*_RUNS, "methods", "branch", "transfer"), "N|Ns|never", changes_results=False,
        ),
    ] = "30s"  # fmt: skip
    on_nonfinite: Annotated[
        str,
        Setting(
            f"What to do at a step whose loss or gradient is not finite: {' or '.join(ON_NONFINITE)} (leave the state "
            "unchanged and take the next step).",
            RUN, (*_RUNS, "methods", "branch", "transfer"), choices=ON_NONFINITE,
            changes_results=False,  # or only what would have been none
        ),
    ] = "stop"  # fmt: skip
    energy: Annotated[
        bool,
        Setting(
            "Measure the energy of each training with codecarbon, per epoch and separately from evaluation; on a CPU, "
            "trainings then run one at a time.",
            RUN, TRAINERS, changes_results=False,
        ),
    ] = False  # fmt: skip
    country: Annotated[
        str | None,
        Setting(
            "Country whose electricity mix determines the emissions of --energy: three letters of ISO 3166-1.",
            RUN, (*TRAINERS, "energy"), "ABC", default="USA, with a note", changes_results=False,
        ),
    ] = None  # fmt: skip
    tensorboard: Annotated[
        bool, Setting("Also write TensorBoard event files to RUN/tensorboard.", RUN, _RUNS, changes_results=False)
    ] = False
    wandb: Annotated[
        bool,
        Setting(
            "Also log to Weights & Biases, as WANDB_MODE and WANDB_PROJECT specify.",
            RUN, _RUNS, changes_results=False,
        ),
    ] = False  # fmt: skip
    mlflow: Annotated[
        bool,
        Setting("Also log to MLflow, at MLFLOW_TRACKING_URI or in RUN/mlflow.db.", RUN, _RUNS, changes_results=False),
    ] = False
    data_dir: Annotated[
        str | None,
        Setting(
            "Folder (or address) of the data sets, to which they are also downloaded.",
            WHAT, (*TRAINERS, "transfer", "info", "energy", "specialize", "export", "datasets show"),
            after="skip_broken", default=f"${DATA_DIR_VARIABLE}, or the user's cache", changes_results=False,
            path=True,
        ),
    ] = None  # fmt: skip
