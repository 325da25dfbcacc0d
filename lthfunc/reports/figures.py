"""What all pictures share."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lthfunc.trees.writing import write_atomically


def figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    return made


def clean(axes: Any) -> None:
    """Axes without a frame, on a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def save(made: Figure, path: Path) -> None:
    """Write a PNG, whole or not at all, into a folder that is made where it is missing."""
    buffer = io.BytesIO()
    made.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())
