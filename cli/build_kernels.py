"""``lthfunc build-kernels``, and what every command shows while kernels are built."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from lthfunc.sparse.kernels.progress import BUILDS

from .console import aside, busy, put, say


def build_kernels() -> None:
    """Build the sparse engine's kernels for this processor now instead of on first use, a minute on two cores."""
    from lthfunc.sparse.kernels import build  # importing torch takes a second

    ready, begun = build.is_built(), time.monotonic()
    build.load_kernels()
    put(f"already built: {build.library_path()}" if ready else
        f"built in {time.monotonic() - begun:.0f} s: {build.library_path()}")  # fmt: skip


@contextmanager
def kernel_builds_shown() -> Iterator[None]:
    """Meanwhile, say when kernels are built in this process: moving on a terminal, otherwise in one line."""
    with ExitStack() as stack:
        shown: list[Callable[[str], None]] = []

        def show(done: int, parts: int) -> None:
            from lthfunc.sparse.kernels.build import expected_seconds

            text = f"Building the sparse kernels for this processor, once, about {expected_seconds()} s"
            if done == 0 and not aside().is_terminal:
                say(text)
            elif done == 0:
                shown.append(stack.enter_context(busy(text)))
            elif done == parts:
                stack.close()
                shown.clear()
            for update in shown:
                update(f"{text} ({done}/{parts})")

        with BUILDS.watched(show):
            yield
