"""How networks are trained."""

from __future__ import annotations

from dataclasses import dataclass

from lthfunc.registry import Entry, Registry


@dataclass(frozen=True)
class OptimizerEntry(Entry):
    """lr, momentum: where neither the user nor the network's recipe says."""

    lr: float = 1.2e-3
    momentum: float = 0.0


@dataclass(frozen=True)
class TargetsEntry(Entry):
    """of: what the targets must be: "classes", "tokens" or "pixels" (a class for each), or "numbers"."""

    of: str = "classes"

    def fits(self, targets: str) -> bool:
        """Whether it works on targets of a kind; what works on classes works on those of tokens."""
        return targets == self.of or (self.of, targets) == ("classes", "tokens")


@dataclass(frozen=True)
class MetricEntry(TargetsEntry):
    """share: whether it is a share, which is shown in per cent. lower_is_better: whether a smaller value is better."""

    share: bool = True
    lower_is_better: bool = False


#: What of `objective.make_optimizer` it names -> an Optimizer.
OPTIMIZERS = Registry("optimizers", "--optimizer", {
    "sgd": OptimizerEntry(
        ".training.optimizers:sgd", "stochastic gradient descent", takes=("momentum", "nesterov"), lr=0.05,
    ),
    "adam": OptimizerEntry(".training.optimizers:adam", "Adam, L2 weight decay", "Kingma & Ba 2015"),
    "adamw": OptimizerEntry(".training.optimizers:adamw", "Adam, decoupled weight decay", "Loshchilov & Hutter 2019"),
    "lion": OptimizerEntry(".training.lion:lion", "the sign of a mean gradient", "Chen et al. 2023", lr=2e-4),
    "muon": OptimizerEntry(
        ".training.muon:muon", "orthogonalised momentum", "Jordan et al. 2024", takes=("momentum",), lr=0.02,
        momentum=0.95,
    ),
}, own_takes=True)  # fmt: skip

#: Settings that put a part before or behind the optimiser (`chain`), in their order, and what makes it of the value.
OPTIMIZER_PARTS = {
    "accumulate": ".training.accumulation:accumulate",
    "sam": ".training.sam:sam",
    "clip_norm": ".training.clipping:clip_by_global_norm",
    "lookahead": ".training.lookahead:lookahead",
    "ema": ".training.averaging:ema",
}


def _schedule(function: str, about: str, source: str = "", takes: tuple[str, ...] = ()) -> Entry:
    return Entry(f".training.schedules:{function}", about, source, takes)


#: What of `objective.schedule_of` it names -> a table of learning rates.
SCHEDULES = Registry("schedules", "--schedule", {
    "constant": _schedule("constant", "one rate"),
    "step": _schedule("stepwise", "drops to a tenth", "Frankle & Carbin 2019, sec. 4", takes=("milestone", "lr_final")),
    "cosine": _schedule("cosine", "half a cosine", "Loshchilov & Hutter 2017, eq. 5", takes=("lr_final",)),
    "cyclic": _schedule(
        "cyclic", "half a cosine, several times", "Loshchilov & Hutter 2017, eq. 5", takes=("lr_final", "cycles"),
    ),
    "one-cycle": _schedule(
        "one_cycle", "up, and down to almost 0, along cosines", "Smith & Topin 2018", takes=("lr_final",),
    ),
    "triangular": _schedule("triangular", "up and down along straight lines", "Jordan 2024", takes=("lr_final",)),
    "trapezoidal": _schedule("trapezoidal", "up, level, and down", "Hägele et al. 2024", takes=("lr_final",)),
}, own_takes=True)  # fmt: skip

#: (outputs, targets) -> the mean over the batch, or what makes such a function.
LOSSES = Registry("losses", "--loss", {
    "cross-entropy": TargetsEntry(
        ".experiments.objective:cross_entropy_loss", "of classes", "Szegedy et al. 2016, sec. 7 (label smoothing)",
        takes=("label_smoothing",),
    ),
    "next-token": TargetsEntry(
        ".experiments.objective:next_token_loss", "of the token that follows each token",
        "Szegedy et al. 2016, sec. 7 (label smoothing)", takes=("label_smoothing",), of="tokens",
    ),
    "pixel-cross-entropy": TargetsEntry(
        ".training.segmentation:pixel_cross_entropy", "of each pixel's class", "Long et al. 2015, sec. 4", of="pixels",
    ),
    "dice": TargetsEntry(
        ".training.segmentation:dice_loss", "1 - the soft Dice coefficient of the classes in an image",
        "Milletari et al. 2016, sec. 3", of="pixels",
    ),
    "dice-cross-entropy": TargetsEntry(
        ".training.segmentation:dice_cross_entropy", "the sum of both", "Isensee et al. 2021", of="pixels",
    ),
    "mse": TargetsEntry(".training.losses:mean_squared_error", "mean squared error", of="numbers"),
    "mae": TargetsEntry(".training.losses:mean_absolute_error", "mean absolute error", of="numbers"),
    "huber": TargetsEntry(
        ".training.losses:huber", "squared up to an error of 1, linear beyond", "Huber 1964", of="numbers",
    ),
}, auto="cross-entropy for classes, pixel-cross-entropy for pixels, mse for numbers")  # fmt: skip

#: The same. A user's own is a share of which more is better.
METRICS = Registry("metrics", "--metric", {
    "accuracy": MetricEntry(".training.losses:accuracy", "the largest output is the target"),
    "top-K": MetricEntry(
        ".training.losses:top_k", "the target is among the K largest outputs", pattern=r"top-(?P<count>[1-9]\d*)",
        example="top-5",
    ),
    "perplexity": MetricEntry(
        ".training.language:perplexity", "e to the mean cross entropy of the next token; lower is better",
        "Jelinek et al. 1977", of="tokens", share=False, lower_is_better=True,
    ),
    "mean-iou": MetricEntry(
        ".training.segmentation:mean_iou", "intersection over union, the mean over classes and images",
        "Csurka et al. 2013, sec. 3", of="pixels",
    ),
    "pixel-accuracy": MetricEntry(
        ".training.segmentation:pixel_accuracy", "a pixel's largest output is its class", of="pixels",
    ),
    "r2": MetricEntry(".training.losses:r2", "share of the variance that is explained, R²", of="numbers"),
}, auto="accuracy for classes, mean-iou for pixels, r2 for numbers")  # fmt: skip

#: work -> Engine, or what makes such a function of the rest of its name.
ENGINES = Registry("engines", "--engine", {
    "eager": Entry(".training.engines.eager:eager", "PyTorch's operations, one after the other"),
    "compile": Entry(".training.engines.compiled:compile_engine", "compiled by Inductor"),
    "sparse": Entry(".sparse.engine:sparse_engine", "surviving weights alone, on a CPU"),
    "sparse/compile": Entry(
        ".sparse.sparse_or_dense:sparse_or", "sparse where that is faster, else compiled",
        pattern="sparse/(?P<dense>compile)", example="sparse/compile",
    ),
    "sparse/eager": Entry(
        ".sparse.sparse_or_dense:sparse_or", "sparse where that is faster, else eager",
        pattern="sparse/(?P<dense>eager)", example="sparse/eager",
    ),
}, auto="sparse/compile for runs of 3,000 steps and more, where it can be")  # fmt: skip
