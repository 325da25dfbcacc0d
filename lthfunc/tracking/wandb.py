"""Weights & Biases: one W&B run per run, with a group of charts and a step axis per training."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lthfunc.errors import UserError
from lthfunc.tracebacks import first_line


class Wandb:
    """WANDB_MODE, WANDB_PROJECT and the like configure it, as usual."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        import wandb

        self._known: set[str] = set()
        # A resumed run continues the same W&B run.
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
        except Exception as error:
            raise UserError(
                f"--wandb: {first_line(error)} (WANDB_MODE=offline keeps everything in the run's folder)"
            ) from error

    def write(self, name: str, step: int, values: Mapping[str, float]) -> None:
        """Log values on the training's own step axis."""
        if name not in self._known:
            self._known.add(name)
            self._run.define_metric(f"{name}/*", step_metric=f"{name}/step")
        self._run.log({f"{name}/step": step, **{f"{name}/{metric}": value for metric, value in values.items()}})

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()
