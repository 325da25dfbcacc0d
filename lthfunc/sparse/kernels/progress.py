"""Who is told how a build of the kernels goes."""

from __future__ import annotations

from lthfunc.watches import Watches

#: Are called with how many parts are compiled, of how many; with 0 when a build begins.
BUILDS: Watches[[int, int]] = Watches()
