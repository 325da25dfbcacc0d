"""TensorBoard's event files in RUN/tensorboard: a log per training, and one per seed's rounds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class TensorBoard:
    """A resumed training begins a new file, which replaces later steps of the old one."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._make, self._place = SummaryWriter, folder / "tensorboard"
        self._writers: dict[str, Any] = {}
        with SummaryWriter(str(self._place)) as writer:
            lines = [f"| {name} | {value} |" for name, value in settings.items() if value not in ([], {})]
            writer.add_text("settings", "\n".join(["| setting | value |", "|---|---|", *lines]))

    def write(self, name: str, step: int, values: Mapping[str, float]) -> None:
        """Add scalars."""
        writer = self._writers.get(name)
        if writer is None:
            writer = self._writers[name] = self._make(str(self._place / name), purge_step=step, flush_secs=5)
        for metric, value in values.items():
            writer.add_scalar(metric, value, step)

    def close(self) -> None:
        """Close all files."""
        for writer in self._writers.values():
            writer.close()
