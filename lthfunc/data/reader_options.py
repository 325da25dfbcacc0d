"""What readers share: checks of their file and of ``--dataset-option NAME=VALUE``."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

from lthfunc.errors import invalid


def check_shares(**shares: Any) -> None:
    """Raise UserError for an invalid share of the examples, and for shares that leave nothing to train on."""
    for name, share in shares.items():
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < 1:
            raise invalid("dataset_option", f"{name}={share}", "a share between 0 and 1")
    if sum(shares.values()) >= 1:
        given = " ".join(f"{name}={share}" for name, share in shares.items())
        raise invalid("dataset_option", given, "shares that leave something to train on")


def check_whole(least: int = 1, **numbers: Any) -> None:
    """Raise UserError unless each is a whole number of at least `least`."""
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            accepted = "a whole number above 0" if least == 1 else f"a whole number of at least {least}"
            raise invalid("dataset_option", f"{name}={number}", accepted)


def regular(path: str | Path) -> Path:
    """The path of a file. Raises OSError for a pipe or device, which may have no end or no writer."""
    place = Path(path).expanduser()
    if place.exists() and not place.is_file() and not place.is_dir():
        raise OSError(errno.EINVAL, "it is not a regular file", str(place))
    return place
