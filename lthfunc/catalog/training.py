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


@dataclass(frozen=True)
class AugmentEntry(Entry):
    """inputs: what it works on, "images" or "numbers" (anything but tokens)."""

    inputs: str = "images"


_DECIMAL = r"\d+(?:\.\d+)?"


def _augment(
    function: str, about: str, source: str, name: str = "", numbers: str = "", inputs: str = "images"
) -> AugmentEntry:
    """An augmentation. name, numbers: of a family, and the arguments that may follow the name after colons."""
    parts = "".join(f"(?::(?P<{each}>{_DECIMAL}))?" for each in numbers.split())
    return AugmentEntry(
        f".data.augment.{function}", about, source, (), f"{name}{parts}" if name else None, name, inputs
    )


#: (inputs, key) -> inputs, or (inputs, targets, key) -> both; or what makes one of `scale` and `classes`.
AUGMENTATIONS = Registry("augmentations", "--augment", {
    "none": _augment("sequences:unchanged", "as they are", ""),
    "flip-crop": _augment(
        "shifts:shift_and_mirror", "shifted by up to 4 pixels, and mirrored or not", "He et al. 2016, sec. 4.2",
    ),
    "flip": _augment("shifts:mirror", "mirrored or not", "Krizhevsky et al. 2012, sec. 4.1"),
    "shift:PIXELS": _augment(
        "shifts:shift", "shifted by up to 4 pixels (or PIXELS)", "He et al. 2016, sec. 4.2", "shift", "pixels",
    ),
    "resized-crop:LEAST": _augment(
        "crops:random_resized_crop", "a part of at least 0.08 (or LEAST) of the image, enlarged",
        "Szegedy et al. 2015, sec. 6", "resized-crop", "least",
    ),
    "color-jitter:STRENGTH": _augment(
        "colors:color_jitter", "other brightness, contrast, saturation and hue", "Chen et al. 2020, app. A",
        "color-jitter", "strength",
    ),
    "randaugment:COUNT:MAGNITUDE": _augment(
        "policies:rand_augment", "2 random operations of magnitude 9 (or COUNT of MAGNITUDE up to 30)",
        "Cubuk et al. 2020", "randaugment", "count magnitude",
    ),
    "erasing:PROBABILITY": _augment(
        "erasing:random_erasing", "a rectangle overwritten, or not", "Zhong et al. 2020", "erasing", "probability",
    ),
    "cutout:SIDE": _augment(
        "erasing:cutout", "a square overwritten, half as wide as the image (or SIDE pixels)", "DeVries & Taylor 2017",
        "cutout", "side",
    ),
    "mixup:ALPHA": _augment(
        "mixing:mixup", "mixed in pairs, with their targets", "Zhang et al. 2018", "mixup", "alpha", "numbers",
    ),
    "cutmix:ALPHA": _augment(
        "mixing:cutmix", "rectangles exchanged in pairs, and targets mixed", "Yun et al. 2019", "cutmix", "alpha",
    ),
    "mixup-or-cutmix:ALPHA": _augment(
        "mixing:mixup_or_cutmix", "one of both for each pair", "Touvron et al. 2021", "mixup-or-cutmix", "alpha",
    ),
})  # fmt: skip

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
