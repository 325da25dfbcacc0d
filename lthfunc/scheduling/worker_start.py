"""The start of a worker process, before it imports PyTorch."""

from __future__ import annotations

from typing import Any

from lthfunc.garbage import rare_collection


def start(*given: Any) -> None:
    """Run a worker. given: the arguments of `worker.work`."""
    with rare_collection():
        from lthfunc.scheduling.worker import work

        work(*given)
