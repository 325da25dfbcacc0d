"""``lthfunc build-kernels``."""

from __future__ import annotations

import time

from .console import screen


def build_kernels() -> None:
    """Build the sparse engine's kernels for this processor now instead of on first use. Takes half a minute."""
    from lthfunc.sparse.kernels import build  # importing torch takes a second

    console, begun = screen(), time.monotonic()
    ready = build.is_built()
    with console.status("building the sparse kernels (half a minute)" if not ready else "loading the sparse kernels"):
        build.load_kernels()
    where = build.cache_folder()
    if ready:
        console.print(f"already built: {where}", highlight=False, soft_wrap=True)
    else:
        console.print(f"built in {time.monotonic() - begun:.0f} s: {where}", highlight=False, soft_wrap=True)
