"""What all pictures share."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lthfunc.printable import printable
from lthfunc.runs import safe_files


def words(text: str) -> str:
    """Text as matplotlib is to draw it: nothing in it is a formula, or a character that no font has."""
    return printable(text).replace("$", r"\$")


def figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    return made


def clean(axes: Any) -> None:
    """Axes without a frame, on a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def save(made: Figure, path: Path, run: Path | None = None) -> None:
    """Write a PNG, or an SVG where the name ends so, whole or not at all, into a folder that is made if missing.

    run: the folder of the run that the picture goes into, whose links are not followed.
    """
    buffer = io.BytesIO()
    if path.suffix == ".svg":
        with rc_context({"svg.hashsalt": "lthfunc"}):  # the same figure, the same file
            made.savefig(buffer, format="svg", metadata={"Date": None})
    else:
        made.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    if run is None:
        path.parent.mkdir(parents=True, exist_ok=True)
    elif path.parent != run:
        safe_files.make(run, path.parent)
    safe_files.write(run or path.parent, path, buffer.getvalue())
