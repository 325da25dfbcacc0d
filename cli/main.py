"""The entry point: all commands, and errors reported in one line."""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.main import get_command

from lthfunc import __version__
from lthfunc.errors import UserError, as_option
from lthfunc.garbage import rare_collection

from .build_kernels import kernel_builds_shown
from .commands import COMMANDS, GroupedCommands, LazyCommand
from .console import say, warning_in_words
from .downloads import downloads_shown

#: Errors of a disk that cannot be written to.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
#: The code of a process that SIGPIPE ends.
_UNREAD = 128 + 13
#: Variables that torchrun sets for its processes.
_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

app = typer.Typer(
    name="lthfunc",
    help="Find winning lottery tickets: subnetworks that train as well as the whole.",
    epilog="Start with lthfunc prune: it finds a ticket on bundled digits in a minute.",
    cls=GroupedCommands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


for _commands in COMMANDS.values():
    for _name, _about in _commands.items():
        app.command(_name, cls=LazyCommand, help=_about.line)(lambda: None)


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


_COMMAND: Any = get_command(app)


def _invoked(arguments: list[str] | None) -> Any:
    given = sys.argv[1:] if arguments is None else arguments

    def run() -> Any:
        if not any("://" in word for word in given):
            return _COMMAND(given, standalone_mode=False)
        from .remote_runs import brought_here  # which imports all settings

        with brought_here(given) as words:
            return _COMMAND(words, standalone_mode=False)

    if not launched():
        return run()
    from .ranks import on_ranks  # which imports torch

    return on_ranks(given[0] if given else "", run)


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code.

    A user's mistake prints one line on stderr and returns 2; damaged files, failing or full disks, and lost ranks
    return 3. Where nobody reads its output any more, as after `| head`, it ends with 141, as a signal would end it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower().replace("-", "") != "utf8":
            stream.reconfigure(errors="replace")  # of a locale without ± and ×
    with rare_collection():
        code = _read_or_not(arguments)
    if launched():  # at once, since threads of a rank's connections may still be busy
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _read_or_not(arguments: list[str] | None) -> int:
    try:
        code = _told(arguments)
        sys.stdout.flush()  # else the interpreter would, and complain
        sys.stderr.flush()
    except BrokenPipeError:
        pass
    except SystemExit as error:
        if not isinstance(error.__context__, BrokenPipeError):
            raise
    else:
        return code
    for stream in (sys.__stdout__, sys.__stderr__):  # what is still to be written goes nowhere
        with suppress(OSError, ValueError, AttributeError):  # of a stream that is no file, or none
            try:
                stream.flush()  # type: ignore[union-attr]
            except BrokenPipeError:
                with Path(os.devnull).open("w") as nowhere:
                    os.dup2(nowhere.fileno(), stream.fileno())  # type: ignore[union-attr]
    return _UNREAD


def _told(arguments: list[str] | None) -> int:
    try:
        with warning_in_words(), kernel_builds_shown(), downloads_shown():
            code = _invoked(arguments)
    except UserError as error:
        from lthfunc.experiments.config import OPTIONS  # of all settings, which take a while

        return _complain(as_option(str(error), OPTIONS), error.code)
    except OSError as error:
        why, full = str(error.strerror), error.errno in _FULL
        no_room = not full and "temporary directory" in why  # may not have a file name
        if not (full or no_room) and None in (error.filename, error.errno):
            raise
        where = f"{error.filename}: " if error.filename else ""
        hint = "; free some space there, or set TMPDIR to another folder" if no_room else ""
        return _complain(f"{where}{why}{hint}; finished results are kept", 3)
    except typer.TyperException as error:
        from .usage_errors import words_of

        return _complain(words_of(error), error.exit_code) if error.format_message() else error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return _complain("interrupted", 130)
    return code if isinstance(code, int) else 0


def launched() -> bool:
    """Whether torchrun started this process as one of several ranks."""
    return all(name in os.environ for name in _LAUNCHED) and os.environ["WORLD_SIZE"] != "1"


def _complain(message: str, code: int) -> int:
    say(f"lthfunc: {' '.join(message.split())}")
    return code
