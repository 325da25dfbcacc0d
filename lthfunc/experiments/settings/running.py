"""How it runs, on what, and what it leaves."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le

from lthfunc.catalog.data_sets import DATA_DIR_VARIABLE
from lthfunc.catalog.training import ENGINES
from lthfunc.experiments.settings.setting import RUN, TRAINERS, WHAT, Count, Setting

PRECISIONS = ("fp32", "tf32", "bf16")
ON_NONFINITE = ("stop", "skip")

#: Commands that keep what they train in a run.
_RUNS = ("prune", "train")


@dataclass(frozen=True)
class Running:
    """Settings of the run and the machine."""

    seed: Annotated[
        int, Ge(0), Le(2**62),
        Setting("Decides the initial weights and the order of the data.", RUN, TRAINERS, of_seeds=True),
    ] = 0  # fmt: skip
    replicates: Annotated[
        Count,
        Setting(
            "Run so many seeds (seed, seed+1, …) and report mean ± standard deviation.",
            RUN, TRAINERS, of_seeds=True,
        ),
    ] = 1  # fmt: skip
    device: Annotated[
        str,
        Setting(
            "auto (a GPU where there is one), cpu, cuda or cuda:N.",
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
            "Leave inputs, units and channels out of a training that pruned weights cut off; results differ by "
            "rounding.",
            RUN, _RUNS,
        ),
    ] = False  # fmt: skip
    precision: Annotated[
        str,
        Setting("What products are computed in: fp32, tf32 (GPU) or bf16.", RUN, _RUNS, choices=PRECISIONS),
    ] = "fp32"
    jobs: Annotated[
        Count | None,
        Setting(
            "Seeds and controls to train side by side: in threads or processes on a CPU, as one program on a GPU.",
            RUN, (*TRAINERS, "branch"), default="what the cores hold; on a GPU all that fit its memory",
            changes_results=False, decided=True,
        ),
    ] = None  # fmt: skip
    threads: Annotated[
        Count | None,
        Setting(
            "CPU threads of each training, at most 128 or four a core.",
            RUN, (*TRAINERS, "branch", "transfer"), default="1 for small networks, else all",
            told=False, decided=True, follows_data=True,
        ),
    ] = None  # fmt: skip
    executor: Annotated[
        str,
        Setting(
            "What runs the trainings: local, ray (a cluster of this machine's cores), or ray://HOST:PORT; results "
            "don't change.",
            RUN, TRAINERS, "WHERE", offers=("local", "ray"), changes_results=False, former_names=("on",),
        ),
    ] = "local"  # fmt: skip
    gpu_share: Annotated[
        float, Gt(0), Le(1),
        Setting(
            "With --executor ray, how much of a GPU a training takes; 0.25 puts four on one.",
            RUN, TRAINERS, changes_results=False,
        ),
    ] = 1.0  # fmt: skip
    checkpoint_every: Annotated[
        str,
        Setting(
            "Keep trainings under way every N steps, or every N seconds (30s), so that `lthfunc resume` goes on "
            "within them; results don't change.",
            RUN, (*_RUNS, "methods", "branch", "transfer"), "N|Ns|never", changes_results=False,
        ),
    ] = "30s"  # fmt: skip
    on_nonfinite: Annotated[
        str,
        Setting(
            f"A step whose loss or gradient is not finite: {' or '.join(ON_NONFINITE)} (it changes nothing, and the "
            "next one follows).",
            RUN, (*_RUNS, "methods", "branch", "transfer"), choices=ON_NONFINITE,
            changes_results=False,  # or only what would have been none
        ),
    ] = "stop"  # fmt: skip
    energy: Annotated[
        bool,
        Setting(
            "Meter each training's energy with codecarbon, by epoch and apart from evaluation; on a CPU trainings "
            "then run one at a time.",
            RUN, TRAINERS, changes_results=False,
        ),
    ] = False  # fmt: skip
    country: Annotated[
        str | None,
        Setting(
            "With --energy, whose electricity mix gives emissions: ISO 3166-1, three letters.",
            RUN, (*TRAINERS, "energy"), "ABC", default="USA, and said so", changes_results=False,
        ),
    ] = None  # fmt: skip
    tensorboard: Annotated[
        bool,
        Setting("Also write event files, into RUN/tensorboard.", RUN, _RUNS, changes_results=False),
    ] = False
    wandb: Annotated[
        bool,
        Setting(
            "Also tell Weights & Biases, as WANDB_MODE and WANDB_PROJECT say.",
            RUN, _RUNS, changes_results=False,
        ),
    ] = False  # fmt: skip
    mlflow: Annotated[
        bool,
        Setting("Also tell MLflow, at MLFLOW_TRACKING_URI or in RUN/mlflow.db.", RUN, _RUNS, changes_results=False),
    ] = False
    data_dir: Annotated[
        str | None,
        Setting(
            "Folder (or address) that holds the data sets, or to download them to.",
            WHAT, (*TRAINERS, "transfer", "info", "energy", "specialize", "export", "datasets show"),
            after="skip_broken", default=f"${DATA_DIR_VARIABLE}, or the user's cache", changes_results=False,
        ),
    ] = None  # fmt: skip
