"""The settings of an experiment: one field per command-line option, free of torch, so that --help is quick."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, NamedTuple

from annotated_types import Ge, Gt, Le, Lt

from lthfunc.errors import invalid, unknown

#: Structures without numbers.
STRUCTURES = ("unstructured", "per-output", "units")
STRUCTURE_NAMES = f"{', '.join(STRUCTURES)}, N:M (2:4), RxC (16x16 blocks)"
OPTIMIZERS = ("sgd", "adam", "adamw", "lion", "muon")
SCHEDULES = ("constant", "step", "cosine", "cyclic", "one-cycle", "triangular", "trapezoidal")
#: Those with an end of their own, which `lr_final` sets.
FALLING = SCHEDULES[1:]
LOSSES = ("auto", "cross-entropy", "mse", "mae", "huber")
METRICS = ("auto", "accuracy", "r2")
METRIC_NAMES = "auto, accuracy, top-K (top-5), r2"
CONTROLS = ("reinit", "random-mask", "layer-random-mask", "shuffled-mask", "inverted-mask")
#: `auto`, the names in training/engines/table.py, which needs torch (a test holds them equal), and the sparse engine
#: alone or with a dense one for the trainings that it is slower at.
ENGINES = ("auto", "eager", "compile", "sparse", "sparse/compile", "sparse/eager")
PRECISIONS = ("fp32", "tf32", "bf16")
ON_NONFINITE = ("stop", "skip")
#: Rewindings without a number; a test holds them equal to starting.py's.
REWINDINGS = ("init", "sign", "lr", "none", "last-lr", "reinit")
REWINDS = f"{', '.join(REWINDINGS)}, step:K or epoch:K"


#: Steps of a training, at most: its learning rates are a table.
MOST_STEPS = 100_000_000
Steps = Annotated[int, Ge(1), Le(MOST_STEPS)]
Count = Annotated[int, Ge(1), Le(10_000)]
Share = Annotated[float, Gt(0), Lt(1)]
Part = Annotated[float, Ge(0), Lt(1)]


@dataclass(frozen=True)
class Config:
    """Settings; None means "the default of this architecture or data set" until `resolve.resolved` fills it in.

    The types are the schema: `schema.checked` holds values to them.
    """

    arch: str = "lenet300"
    arch_option: dict[str, str] = field(default_factory=dict)
    weights: str | None = None
    prune_only: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    dataset: str = "digits"
    dataset_option: dict[str, str] = field(default_factory=dict)
    skip_broken: bool = False
    rounds: Annotated[int, Ge(0), Le(10_000)] = 5
    rate: Share = 0.2
    density: Share | None = None
    densities: str | None = None
    allocate: str = "global"
    layer_rate: dict[str, Part] = field(default_factory=dict)
    floor: Annotated[int, Ge(0), Le(10**12)] = 0
    score: str = "magnitude"
    structure: str = "unstructured"
    exempt: tuple[str, ...] = ()
    rewind: str = "init"
    control: tuple[str, ...] = ()
    epochs: Annotated[int, Ge(1), Le(1_000_000)] | None = None
    steps: Steps | None = None
    batch_size: Annotated[int, Ge(1), Le(10_000_000)] | None = None
    optimizer: str | None = None
    lr: Annotated[float, Gt(0)] | None = None
    lr_final: Annotated[float, Ge(0)] | None = None
    momentum: Part | None = None
    nesterov: bool = False
    weight_decay: Annotated[float, Ge(0)] | None = None
    schedule: str = "constant"
    milestone: tuple[Steps, ...] = ()
    cycles: Annotated[int, Ge(1), Le(1_000_000)] = 4
    warmup: Annotated[int, Ge(0), Le(MOST_STEPS)] = 0
    synflow_rounds: Count | None = None
    augment: bool | None = None
    loss: str = "auto"
    label_smoothing: Part = 0.0
    metric: str = "auto"
    eval_every: Steps | None = None
    seed: Annotated[int, Ge(0), Le(2**62)] = 0
    replicates: Count = 1
    device: str = "auto"
    engine: str = "auto"
    compact: bool = False
    precision: str = "fp32"
    jobs: Count | None = None
    threads: Count | None = None
    on: str = "local"
    gpu_share: Annotated[float, Gt(0), Le(1)] = 1.0
    checkpoint_every: str = "30s"
    on_nonfinite: str = "stop"
    energy: bool = False
    country: str | None = None
    tensorboard: bool = False
    wandb: bool = False
    mlflow: bool = False
    data_dir: str | None = None


def trainings_at_once(config: Config) -> int:
    """Trainings that don't wait for each other: every seed's ticket and its controls."""
    return config.replicates * (1 + (len(config.control) if config.rounds else 0))


class Rewind(NamedTuple):
    """Where pruned networks start again. kind: a name, or package.module:function; at: the k of step and epoch."""

    kind: str
    at: int = 0


def parse_rewind(text: str) -> Rewind:
    """``step:500`` and the like. Raises UserError."""
    numbered = text.partition(":")[0] in ("step", "epoch", "lr", "sign")
    if text in REWINDINGS or (is_own(text) and not numbered):
        return Rewind(text)
    if found := re.fullmatch(r"(step|epoch|lr|sign):(\d+)", text):
        return Rewind(found[1], int(found[2]))
    raise invalid("--rewind", text, REWINDS)


class Structure(NamedTuple):
    """Which masks are allowed. kind: a name, package.module:function, "n:m" or "blocks"; sizes: of the last two."""

    kind: str
    sizes: tuple[int, int] = (0, 0)


def parse_structure(text: str) -> Structure:
    """``2:4`` and the like. Raises UserError."""
    if text in STRUCTURES or is_own(text):
        return Structure(text)
    if found := re.fullmatch(r"([1-9]\d*)([:x])([1-9]\d*)", text):
        few, sign, many = int(found[1]), found[2], int(found[3])
        if sign == "x":
            return Structure("blocks", (few, many))
        if few <= many:
            return Structure("n:m", (few, many))
    raise invalid("--structure", text, f"{STRUCTURE_NAMES}, or package.module:function")


class Interval(NamedTuple):
    """Between two checkpoints: steps, or seconds, or neither for none."""

    steps: int | None = None
    seconds: float | None = None

    def after(self, step: int) -> int | None:
        """The next step at which one is due by its number."""
        return None if self.steps is None else step - step % self.steps + self.steps


def parse_interval(text: str) -> Interval:
    """``500`` steps, ``30s`` seconds, ``never``. Raises UserError."""
    if text == "never":
        return Interval()
    if re.fullmatch(r"[1-9]\d{0,8}", text):
        return Interval(steps=int(text))
    if found := re.fullmatch(r"(\d{1,7}(?:\.\d{1,3})?)s", text):
        return Interval(seconds=float(found[1]))
    raise invalid("--checkpoint-every", text, "a number of steps (500), of seconds (30s) or never")


#: What the name of a user's own function looks like.
OWN = r"^(.+\.py|[A-Za-z_][\w.]*):[A-Za-z_]\w*$"


def is_own(name: str) -> bool:
    """Whether a name is a user's own function, package.module:function or path/to/file.py:name."""
    return re.fullmatch(OWN, name) is not None


def from_mapping(values: Mapping[str, Any]) -> Config:
    """A Config from plain values (a TOML file's, say). Raises UserError for unknown names and wrong types."""
    names = {item.name for item in fields(Config)}
    if isinstance(values.get("compile"), bool):  # as version 0.1.0 wrote it
        values = {**values, "engine": "compile" if values["compile"] else "eager"}
        del values["compile"]
    if "scope" in values:
        values = {"allocate" if name == "scope" else name: value for name, value in values.items()}
    for name in values:
        if name not in names:
            raise unknown("configuration", str(name), sorted(names))
    from lthfunc.experiments.schema import checked  # pydantic takes a tenth of a second, which --help need not wait for

    return checked(values)


def to_mapping(config: Config) -> dict[str, Any]:
    """Plain values, without those that are not set."""
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(config).items()}
    return {name: value for name, value in plain.items() if value is not None}
