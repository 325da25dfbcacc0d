"""MLflow: one MLflow run per run, with metrics named by training."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lthfunc.errors import UserError
from lthfunc.tracebacks import first_line

_EXPERIMENT = "lthfunc"
#: The tag by which the MLflow run of a folder is found again.
_TAG = "lthfunc.folder"
#: Some stores refuse longer parameters.
_LONGEST = 500


class MLflow:
    """Logs to MLFLOW_TRACKING_URI, or to RUN/mlflow.db."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.resolve() / 'mlflow.db'}"
        mine = str(folder.resolve())
        try:
            self._client = MlflowClient(uri)
            found = self._client.get_experiment_by_name(_EXPERIMENT)
            experiment = found.experiment_id if found else self._client.create_experiment(_EXPERIMENT)
            known = self._client.search_runs([experiment], f"tags.`{_TAG}` = '{mine}'", max_results=1)
            if known:
                self._run = known[0].info.run_id
                self._client.update_run(self._run, status="RUNNING")
            else:
                self._run = self._client.create_run(experiment, tags={_TAG: mine}, run_name=folder.name).info.run_id
                for name, value in settings.items():
                    self._client.log_param(self._run, name, str(value)[:_LONGEST])
        except (MlflowException, ImportError, OSError) as error:
            raise UserError(f"--mlflow: {uri}: {first_line(error)}") from error

    def write(self, name: str, step: int, values: Mapping[str, float]) -> None:
        """Log metrics."""
        for metric, value in values.items():
            self._client.log_metric(self._run, f"{name}/{metric}", value, step=step)

    def close(self) -> None:
        """Mark the run as finished."""
        self._client.set_terminated(self._run)
