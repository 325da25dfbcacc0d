"""Weights & Biases: a run there for a run here, its trainings as groups of charts with steps of their own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lthfunc.errors import UserError
from lthfunc.tracebacks import first_line


class Wandb:
    """Where and how (WANDB_MODE=offline, WANDB_PROJECT, …) is the package's own to decide."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        import wandb

        self._known: set[str] = set()
        # The same run again when it goes on.
        name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        try:
            self._run = wandb.init(
                project=wandb.Settings().project or "lthfunc",
                id=name,
                name=folder.name,
                resume="allow",
                dir=str(folder),
                config=dict(settings),
                settings=wandb.Settings(console="off", silent=True),
            )
        except Exception as error:  # of its many kinds
            raise UserError(
                f"--wandb: {first_line(error)} (WANDB_MODE=offline keeps everything in the run's folder)"
            ) from error

    def write(self, name: str, step: int, values: Mapping[str, float]) -> None:
        """Log them beside their own step."""
        if name not in self._known:
            self._known.add(name)
            self._run.define_metric(f"{name}/*", step_metric=f"{name}/step")
        self._run.log({f"{name}/step": step, **{f"{name}/{metric}": value for metric, value in values.items()}})

    def close(self) -> None:
        """Finish it."""
        self._run.finish()
