"""Engines from names, and the rule that chooses one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lthfunc.argument_hints import described
from lthfunc.catalog.training import ENGINES
from lthfunc.errors import ArgumentError, UserError, failing_as_options
from lthfunc.tracebacks import call_user_function, function_name, is_library_function
from lthfunc.training.engines.interface import Engine, Work

#: Steps of a whole run from which compiling (3 to 20 s the first time, measured in benchmarks/) is paid back.
COMPILE_FROM_STEPS = 3_000


#: An engine's name, or the function that makes it.
Making = str | Callable[[Work], Engine]


def make_engine(name: Making, work: Work) -> Engine:
    """The engine of that name, or by that function. Raises UserError where there is none, or it cannot run the work."""
    if work.side_effects.global_rngs and name != "eager":
        raise UserError(
            f"engine: {work.model.name} draws from {' and '.join(work.side_effects.global_rngs)} in forward, which "
            "only the engine eager can run; draw with torch instead"
        )
    with failing_as_options({ENGINES.option: "engine"}):
        making = ENGINES.make(name, {}, fits="Making") if isinstance(name, str) else name
    shown = name if isinstance(name, str) else function_name(name)
    if is_library_function(making):
        made: Any = making(work)
    else:
        made = call_user_function("engine", shown, lambda: making(work))
    if not isinstance(made, Engine):
        raise ArgumentError(
            f"engine: {shown!r} returned {described(made)}, not an Engine; expected a name ({', '.join(ENGINES)}) or "
            "what makes one, such as lf.sparse_engine"
        )
    return made


def engine_for(steps: int) -> str:
    """What `auto` stands for, by the number of steps of the whole run alone, so that equal commands give equal bits."""
    return "compile" if steps >= COMPILE_FROM_STEPS else "eager"
