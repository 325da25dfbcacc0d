"""``lthfunc prune``, ``lthfunc train`` and ``lthfunc resume``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from lthfunc.errors import UserError
from lthfunc.experiments import recipes
from lthfunc.experiments.config import Config, from_mapping
from lthfunc.experiments.resolve import resolved
from lthfunc.experiments.trust import check_trust

from . import options as o

_PRUNING_ONLY = (
    "rounds", "rate", "density", "densities", "allocate", "scope", "floor", "layer_rate", "score", "structure",
    "exempt", "prune_only", "keep", "rewind", "control",
)  # fmt: skip


def prune(
    arch: o.Arch = None,
    arch_option: o.ArchOption = None,
    weights: o.Weights = None,
    dataset: o.DataSet = None,
    dataset_option: o.DataSetOption = None,
    skip_broken: o.SkipBroken = None,
    data_dir: o.DataDir = None,
    recipe: o.Recipe = None,
    config: o.ConfigFile = None,
    rounds: o.Rounds = None,
    rate: o.Rate = None,
    density: o.Density = None,
    densities: o.Densities = None,
    score: o.ScoreName = None,
    allocate: o.Allocate = None,
    layer_rate: o.LayerRate = None,
    floor: o.Floor = None,
    structure: o.Structure = None,
    exempt: o.Exempt = None,
    prune_only: o.PruneOnly = None,
    keep: o.Keep = None,
    rewind: o.RewindTo = None,
    control: o.Control = None,
    epochs: o.Epochs = None,
    steps: o.Steps = None,
    batch_size: o.BatchSize = None,
    optimizer: o.OptimizerName = None,
    lr: o.Lr = None,
    lr_final: o.LrFinal = None,
    momentum: o.Momentum = None,
    nesterov: o.Nesterov = None,
    weight_decay: o.WeightDecay = None,
    schedule: o.ScheduleName = None,
    milestone: o.Milestone = None,
    cycles: o.Cycles = None,
    warmup: o.Warmup = None,
    augment: o.Augment = None,
    loss: o.LossName = None,
    label_smoothing: o.LabelSmoothing = None,
    metric: o.MetricName = None,
    eval_every: o.EvalEvery = None,
    seed: o.Seed = None,
    replicates: o.Replicates = None,
    device: o.Device = None,
    engine: o.Engine = None,
    compact: o.Compact = None,
    precision: o.Precision = None,
    jobs: o.Jobs = None,
    threads: o.Threads = None,
    on: o.On = None,
    gpu_share: o.GpuShare = None,
    checkpoint_every: o.CheckpointEvery = None,
    on_nonfinite: o.OnNonfinite = None,
    energy: o.Energy = None,
    country: o.Country = None,
    tensorboard: o.TensorBoard = None,
    wandb: o.Wandb = None,
    mlflow: o.MLflow = None,
    trust: o.Trust = False,
    out: o.Out = None,
    json: o.Json = False,
) -> None:
    """Find a winning ticket: train, prune the smallest weights, rewind the rest to where they began; repeat.

    Leaves a folder with the winning ticket, its trained weights, every round's weights and masks, the numbers, and
    three pictures.
    """
    given = dict(locals())
    _start("prune", given, out, json)


def train(
    arch: o.Arch = None,
    arch_option: o.ArchOption = None,
    weights: o.Weights = None,
    dataset: o.DataSet = None,
    dataset_option: o.DataSetOption = None,
    skip_broken: o.SkipBroken = None,
    data_dir: o.DataDir = None,
    recipe: o.Recipe = None,
    config: o.ConfigFile = None,
    epochs: o.Epochs = None,
    steps: o.Steps = None,
    batch_size: o.BatchSize = None,
    optimizer: o.OptimizerName = None,
    lr: o.Lr = None,
    lr_final: o.LrFinal = None,
    momentum: o.Momentum = None,
    nesterov: o.Nesterov = None,
    weight_decay: o.WeightDecay = None,
    schedule: o.ScheduleName = None,
    milestone: o.Milestone = None,
    cycles: o.Cycles = None,
    warmup: o.Warmup = None,
    augment: o.Augment = None,
    loss: o.LossName = None,
    label_smoothing: o.LabelSmoothing = None,
    metric: o.MetricName = None,
    eval_every: o.EvalEvery = None,
    seed: o.Seed = None,
    replicates: o.Replicates = None,
    device: o.Device = None,
    engine: o.Engine = None,
    compact: o.Compact = None,
    precision: o.Precision = None,
    jobs: o.Jobs = None,
    threads: o.Threads = None,
    on: o.On = None,
    gpu_share: o.GpuShare = None,
    checkpoint_every: o.CheckpointEvery = None,
    on_nonfinite: o.OnNonfinite = None,
    energy: o.Energy = None,
    country: o.Country = None,
    tensorboard: o.TensorBoard = None,
    wandb: o.Wandb = None,
    mlflow: o.MLflow = None,
    trust: o.Trust = False,
    out: o.Out = None,
    json: o.Json = False,
) -> None:
    """Train the dense network, without pruning."""
    given = dict(locals())
    _start("train", given, out, json)


def resume(
    run: Annotated[str, typer.Argument(help="The run's folder.")],
    data_dir: o.DataDir = None,
    jobs: o.Jobs = None,
    on: o.On = None,
    gpu_share: o.GpuShare = None,
    checkpoint_every: o.CheckpointEvery = None,
    on_nonfinite: o.OnNonfinite = None,
    energy: o.Energy = None,
    country: o.Country = None,
    tensorboard: o.TensorBoard = None,
    wandb: o.Wandb = None,
    mlflow: o.MLflow = None,
    trust: o.Trust = False,
    json: o.Json = False,
) -> None:
    """Go on with a run that was interrupted; the results have the same bits as without the interruption.

    Trainings go on from their checkpoints; what is damaged is trained again. The options replace the run's own, since
    they change no result.
    """
    changed = {
        "data_dir": data_dir, "jobs": jobs, "on": on, "gpu_share": gpu_share, "checkpoint_every": checkpoint_every,
        "on_nonfinite": on_nonfinite,
        "energy": energy, "country": country, "tensorboard": tensorboard, "wandb": wandb, "mlflow": mlflow,
    }  # fmt: skip
    from .running import resume_run

    resume_run(run, {name: value for name, value in changed.items() if value is not None}, trust, wants_json=json)


def _start(command: str, given: dict[str, Any], out: str | None, wants_json: bool) -> None:
    config = settings_of(command, given)
    from .running import new_run  # torch is imported here, after all that can be checked without it

    new_run(config, command, out, wants_json=wants_json)


def _of_recipe(recipe: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """What a recipe says besides what was given: its length gives way to another, its rates to densities."""
    if recipe is None:
        return {}
    found = recipes.settings_of(recipe)
    gives_way = (
        (("epochs", "steps"), ("epochs", "steps", "milestone")),
        (("densities", "density"), ("rate",)),
        (("schedule",), ("schedule", "milestone")),
        (("allocate",), ("allocate", "layer_rate")),
        (("arch",), ("layer_rate",)),
    )
    for names, others in gives_way:
        if any(name in given for name in names):
            found = {name: value for name, value in found.items() if name not in others}
    if "optimizer" in given and given["optimizer"] != found.get("optimizer"):
        found = {
            name: value
            for name, value in found.items()
            if name not in ("optimizer", "lr", "momentum", "nesterov", "weight_decay")
        }
    return found


def settings_of(command: str, given: dict[str, Any]) -> Config:
    """The settings that were typed, or stand in the file that was named, checked. Raises UserError."""
    return resolved(merged(command, given))


def merged(command: str, given: dict[str, Any]) -> Config:
    """What was typed, or stands in the file that was named: options win over the file's. Raises UserError."""
    path = given.pop("config")
    trust = given.pop("trust", False)
    typed = {name: value for name, value in given.items() if name not in ("out", "json") and value not in (None, [])}
    for one, other in (("rate", "density"), ("rate", "densities"), ("density", "densities")):
        if one in typed and other in typed:
            raise UserError(f"--{one} and --{other}: give one of them, not both")
    if "layer_rate" in typed:
        typed["layer_rate"] = o.layer_rates(typed["layer_rate"])
    for name in ("arch_option", "dataset_option"):
        if name in typed:
            typed[name] = o.named_values(f"--{name.replace('_', '-')}", typed[name])
    recipe = typed.pop("recipe", None)
    from_file: dict[str, Any] = {}
    if path is not None:
        from lthfunc.runs.settings import read_toml

        from_file = read_toml(path)
        check_trust(from_file, f"--config: {path!r}", trusted=trust, typed=typed)
        # Naming a length on the command line replaces the file's, whichever of the two it is in.
        if "epochs" in typed or "steps" in typed:
            from_file = {name: value for name, value in from_file.items() if name not in ("epochs", "steps")}
    from_file = {**_of_recipe(recipe, {**from_file, **typed}), **from_file}
    if command == "train":
        # A file written by `prune` serves as it is; its pruning does not apply.
        from_file = {name: value for name, value in from_file.items() if name not in _PRUNING_ONLY} | {"rounds": 0}
    try:
        return from_mapping({**from_file, **typed})
    except UserError as error:
        raise UserError(f"{error} [in {path}]") if path else error from error
