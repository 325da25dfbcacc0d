"""The entry point: all commands, and errors reported in one line."""

from __future__ import annotations

import errno
import functools
import os
import sys
from typing import Annotated, Any

import typer
from typer.main import get_command

from lthfunc import __version__
from lthfunc.errors import UserError
from lthfunc.garbage import rare_collection

from . import branching, deployment, experiment, listings
from .benchmark import benchmark
from .build_kernels import build_kernels
from .checkpoint_import import import_
from .compare import compare
from .config import config
from .connectivity import connectivity
from .console import say, warning_in_words
from .energy import breakeven, energy
from .info import info
from .methods import methods
from .remote_runs import brought_here
from .report import report
from .sweep import sweep
from .verify import verify
from .watch import watch

#: Errors of a disk that cannot be written to.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
#: Variables that torchrun sets for its processes.
_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

app = typer.Typer(
    name="lthfunc",
    help="Find winning lottery tickets: small subnetworks that train as well as the whole network.",
    epilog="Start with: lthfunc prune    (a ticket for LeNet-300-100 on bundled digits, in less than a minute)",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_COMMANDS = (
    experiment.prune, experiment.train, experiment.resume, info, energy, breakeven, sweep, report, compare, watch,
    verify, config, import_, build_kernels, branching.branch, branching.transfer, deployment.specialize,
    deployment.export, methods, connectivity, listings.archs, listings.recipes, benchmark,
)  # fmt: skip
#: Of commands that read some words themselves.
_SPECIAL: dict[Any, dict[str, Any]] = {
    sweep: {"context_settings": {"allow_extra_args": True, "ignore_unknown_options": True}},
    benchmark: {"no_args_is_help": True, "context_settings": {"allow_interspersed_args": False}},
}
for command in _COMMANDS:
    app.command(command.__name__.rstrip("_").replace("_", "-"), **_SPECIAL.get(command, {}))(command)
app.add_typer(listings.datasets, name="datasets")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lthfunc {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options before the command."""


@functools.cache
def _command() -> Any:
    """The commands, built once from the signatures of their functions."""
    return get_command(app)


def _invoked(arguments: list[str] | None) -> Any:
    given = sys.argv[1:] if arguments is None else arguments

    def run() -> Any:
        if not any("://" in word for word in given):
            return _command()(given, standalone_mode=False, obj=given)
        with brought_here(given) as words:
            return _command()(words, standalone_mode=False, obj=words)

    if not launched():
        return run()
    from .ranks import on_ranks  # which imports torch

    return on_ranks(given[0] if given else "", run)


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code.

    A user's mistake prints one line on stderr and returns 2; damaged files, failing or full disks, and lost ranks
    return 3.
    """
    with rare_collection():
        code = _told(arguments)
    if launched():  # at once, since threads of a rank's connections may still be busy
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _told(arguments: list[str] | None) -> int:
    try:
        with warning_in_words():
            code = _invoked(arguments)
    except UserError as error:
        return _complain(str(error), error.code)
    except OSError as error:
        why, full = str(error.strerror), error.errno in _FULL
        if full or "temporary directory" in why:  # may not have a file name
            where = f"{error.filename}: " if error.filename else ""
            hint = "" if full else "; free some space there, or set TMPDIR to another folder"
            return _complain(f"{where}{why}{hint}; finished results are kept", 3)
        if error.filename is None or error.errno is None:
            raise
        return _complain(f"{error.filename}: {error.strerror}; finished results are kept", 3)
    except typer.TyperException as error:
        return _complain(error.format_message(), error.exit_code) if error.format_message() else error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return _complain("interrupted", 130)
    return code if isinstance(code, int) else 0


def launched() -> bool:
    """Whether torchrun started this process as one of several ranks."""
    return all(name in os.environ for name in _LAUNCHED) and os.environ["WORLD_SIZE"] != "1"


def _complain(message: str, code: int) -> int:
    say(f"lthfunc: {' '.join(message.split())}")
    return code
