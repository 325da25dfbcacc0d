"""Runs at addresses (s3://, gs://, …): local folders replace the addresses in the command's arguments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lthfunc.errors import UserError
from lthfunc.experiments.config import SETTINGS
from lthfunc.remote import is_remote

from .console import say

if TYPE_CHECKING:
    from lthfunc.runs.mirror import Mirror
    from lthfunc.scheduling.queue import Watcher

#: Options whose addresses are not those of runs.
_OTHERS = {"--config", *(setting.option for setting in SETTINGS.values())}
#: Commands that write a folder; the others write a file.
_RUNS = ("prune", "train", "resume", "branch", "transfer", "sweep", "methods")
#: The runs that this process works on: their folders and mirrors.
_OPEN: dict[Path, Mirror] = {}


@contextmanager
def brought_here(arguments: Sequence[str]) -> Iterator[list[str]]:
    """The arguments with local folders instead of addresses; output is uploaded, other runs are only downloaded.

    Raises UserError if an address cannot be reached, and LostRunError if the final upload fails.
    """
    with ExitStack() as stack:
        here = [_here(stack, arguments, place) for place in range(len(arguments))]
        try:
            yield here
        except UserError as error:  # as the user typed it
            for folder, url in zip(here, arguments, strict=True):
                if folder != url:
                    said = str(error).replace(folder.rpartition("=")[2], url.rpartition("=")[2].rstrip("/"))
                    error.args = (said, *error.args[1:])
            raise


def named(folder: Path) -> str:
    """A folder's address, if the user typed one, or its path."""
    for place, mirror in _OPEN.items():
        if place == folder or place in folder.parents:
            return "/".join([mirror.url, *folder.relative_to(place).parts])
    return str(folder)


def sent_on(folder: Path) -> list[Watcher]:
    """The watcher that uploads a run, or the folder that it is in, to its address."""
    from lthfunc.scheduling.progress import Uploads

    found = [mirror for place, mirror in _OPEN.items() if place == folder or place in folder.parents]
    return [Uploads(mirror) for mirror in found]


def _here(stack: ExitStack, arguments: Sequence[str], place: int) -> str:
    word = arguments[place]
    option, sign, url = word.partition("=") if word.startswith("--") else ("", "", word)
    if not is_remote(url):
        return word
    before = arguments[place - 1] if place else ""
    whose = option or (before if before.startswith("--") else "RUN")
    if whose in _OTHERS:
        return word
    if whose == "--out" or (arguments[0] == "resume" and not option):
        return f"{option}{sign}{_opened(stack, whose, url, single=arguments[0] not in _RUNS)}"
    from lthfunc.remote import fetch_to_cache

    lasting = lambda name: not name.rpartition("/")[2].startswith(".")  # noqa: E731
    return f"{option}{sign}{fetch_to_cache(whose, url.rstrip('/'), lasting)}"


def _opened(stack: ExitStack, option: str, url: str, *, single: bool) -> Path:
    from lthfunc.runs.mirror import Mirror

    mirror = stack.enter_context(Mirror(option, url, single=single))
    for line in mirror.said:
        say(line)
    _OPEN[mirror.folder] = mirror
    stack.callback(_OPEN.pop, mirror.folder)
    return mirror.folder
