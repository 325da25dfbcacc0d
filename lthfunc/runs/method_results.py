"""The results of a comparison of methods on disk: a line on its settings and machine, then one per method and seed.

While trainings run, a folder beside the file has their checkpoints.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from lthfunc.errors import UserError, invalid
from lthfunc.experiments.config import FREE, SETTINGS, Config, to_mapping
from lthfunc.experiments.records import Record
from lthfunc.runs.environment import machine
from lthfunc.runs.json_lines import append_lines, open_log
from lthfunc.trees.files import save_ticket
from lthfunc.trees.types import Ticket

#: Settings that don't change the result of a method with a seed.
_FREE = FREE | {name for name, setting in SETTINGS.items() if setting.of_seeds}


def checkpoint_folder(path: Path) -> Path:
    """The folder of the checkpoints, beside the file of results."""
    return path.with_name(f"{path.name}.checkpoints")


def open_results(named: Path, config: Config) -> list[Record]:
    """Start a file, or read the records of one of the same comparison. named: the path as the user gave it.

    Raises UserError if the file has other content.
    """
    path = named.resolve()  # the user may have named a link
    if path.is_dir():
        raise invalid("--out", str(named), "a file, not a folder")
    if not path.parent.is_dir():
        raise UserError(f"--out: {str(named.parent)!r} is not a folder")
    if not path.exists():
        shutil.rmtree(checkpoint_folder(path), ignore_errors=True)  # of a file that was deleted
    mine = {name: value for name, value in to_mapping(config).items() if name not in _FREE}
    about = {"kind": "methods", "machine": machine(config.device, config.threads), "config": mine}
    return open_log(path, named, about, _FREE)


def make_checkpoint_folder(path: Path) -> Path:
    """Make the folder of the checkpoints. Raises OSError."""
    folder = checkpoint_folder(path)
    folder.mkdir(exist_ok=True)
    return folder


def drop_checkpoint_folder(path: Path) -> None:
    """Remove the folder of the checkpoints, unless some are left in it."""
    folder = checkpoint_folder(path)
    for each in (*sorted(folder.rglob("*"), reverse=True), folder):
        with contextlib.suppress(OSError):
            each.rmdir()


def add_result(path: Path, item: Record) -> None:
    """Add the result of a method with a seed."""
    append_lines(path, [{"kind": "result", **item}])


def save_network(folder: Path, item: Record, ticket: Ticket) -> None:
    """Write a method's trained network and masks."""
    left_out = {"density", "test_accuracy", "test_loss", "collapsed", "seconds", "energy"}
    about = {name: value for name, value in item.items() if name not in left_out}
    save_ticket(folder / f"{item['method']}-seed{item['seed']}.safetensors", ticket, about)
