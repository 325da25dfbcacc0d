"""``lthfunc datasets show``: a data set as text and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lthfunc.catalog.data_sets import DATASETS, canonical, default_data_dir
from lthfunc.data.data_warnings import find_warnings, without_data_warnings
from lthfunc.data.loading import load
from lthfunc.errors import UserError
from lthfunc.reports.samples import can_be_drawn, class_table, sample_grid, sample_lines
from lthfunc.trees.types import Dataset

from .console import put, screen
from .decoding import decoding


def show_dataset(
    name: str,
    out: str | None,
    *,
    dataset_option: Mapping[str, str] | None = None,
    skip_broken: bool = False,
    tokenizer: str | None = None,
    data_dir: str | None = None,
) -> None:
    """Load and describe a data set. out: the file to draw examples into. Raises UserError if it cannot be loaded."""
    name = canonical(name)
    with decoding(f"reading {name}") as observe, without_data_warnings():
        data = load(
            name, data_dir, options=dataset_option, skip_broken=skip_broken, tokenizer=tokenizer, observe=observe
        )
    where = f" in {data_dir or default_data_dir()}" if name in DATASETS and DATASETS[name].home else ""
    put(f"{name}{where}: {data.examples:,} training, {len(data.val.x):,} validation, {len(data.test.x):,} test")
    put(_inputs(data))
    if data.tokens:
        for line in sample_lines(data):
            put(f"  {line!r}")
    if data.train.y.is_floating_point():
        y, some = data.train.y.double(), "" if data.stream is None else f" (of {len(data.train.y)} training examples)"
        mean, deviation = (", ".join(f"{v:.4g}" for v in part.tolist()) for part in (y.mean(0), y.std(0)))
        put(f"targets: {data.classes} numbers, mean {mean}, standard deviation {deviation}{some}")
    else:
        screen().print(class_table(data))
    for hint in find_warnings(data):
        put(f"hint: {hint}")
    if not can_be_drawn(data):
        if out is not None:
            raise UserError(f"--out: {name!r} has no images of 1 or 3 channels to draw")
    elif out is None:
        put("examples as a picture: --out FILE.png")
    else:
        from lthfunc.reports.matplotlib_figures import save

        save(sample_grid(data), Path(out))
        put(f"picture: {out}")


def _inputs(data: Dataset) -> str:
    kind = str(data.train.x.dtype).removeprefix("torch.")
    shape = "×".join(map(str, data.shape))
    if data.tokens and not data.labels:
        return f"inputs: {kind} {shape}, tokens for an embedding"
    if data.tokens:
        if any(len(label) > 1 for label in data.labels):
            return f"inputs: windows of {shape} tokens, from a vocabulary of {data.classes:,}"
        return f"inputs: windows of {shape} characters, from an alphabet of {data.classes}"
    if data.parts:
        parts = ", ".join(f"{part.name or index} {part.shape}" for index, part in enumerate(data.parts))
        return f"inputs: {len(data.parts)}, {parts}"
    if data.scale is None:
        return f"inputs: {kind} {shape}, not scaled"
    mean, std = (", ".join(f"{value:.4f}" for value in part) for part in (data.scale.mean, data.scale.std))
    return f"inputs: {kind} {shape}, divided by {data.scale.unit:g}, normalised by mean {mean}, deviation {std}"
