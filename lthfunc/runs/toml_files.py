"""Configuration files: reading and writing TOML."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import tomli_w

from lthfunc.errors import UserError
from lthfunc.experiments.config import Config, to_mapping
from lthfunc.experiments.schema import from_mapping
from lthfunc.printable import printable
from lthfunc.runs import safe_files

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


#: Most bytes of a file of settings.
_MOST = 1_000_000


def read_toml(path: str | Path, run: Path | None = None) -> dict[str, Any]:
    """The values of a TOML file. run: the one that it is part of. Raises UserError if it can't be read or parsed."""
    # A file that the user names may be reached through links; but no pipe or device, which may be endless.
    whole = Path(path) if run is not None else Path(os.path.realpath(path))
    try:
        payload = safe_files.read(run or whole.parent, whole, _MOST)
        values: dict[str, Any] = tomllib.loads(payload.decode("utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"--config: cannot read {str(path)!r}: {reason}") from error
    except UserError:
        raise
    except (RecursionError, ValueError) as error:
        raise UserError(f"--config: {str(path)!r} is not TOML: {error}") from error
    return values


def read_config(path: str | Path, run: Path | None = None) -> Config:
    """A configuration file as a Config. run: the run that it belongs to. Raises UserError."""
    try:
        return from_mapping(read_toml(path, run))
    except UserError as error:
        raise UserError(f"{error} [in {path}]") from error


def to_toml(config: Config, made_by: str) -> str:
    """A run's settings as TOML, below a comment with the command that repeats it."""
    return f"# {printable(made_by, keep='')}\n" + tomli_w.dumps(to_mapping(config))
