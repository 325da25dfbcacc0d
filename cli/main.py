"""The entry point: all commands, and errors reported in one line."""

from __future__ import annotations

import errno
import functools
import importlib
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand
from typer.main import get_command

from lthfunc import __version__
from lthfunc.errors import UserError
from lthfunc.garbage import rare_collection

from .console import say, warning_in_words

#: Errors of a disk that cannot be written to.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
#: Variables that torchrun sets for its processes.
_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
#: The commands by group: "module:function", or "module:app" of a command with commands of its own; and a line of help.
COMMANDS = {
    "Find a ticket": {
        "prune": ("experiment:prune", "Find a winning ticket: train, prune, rewind, repeat."),
        "train": ("experiment:train", "Train the dense network alone."),
        "resume": ("experiment:resume", "Resume an interrupted run, to the same bits."),
        "sweep": ("sweep:sweep", "Run prune with many settings: a grid, or Optuna's search."),
    },
    "Look at it": {
        "info": ("info:info", "Show a run's settings and results, or a ticket file."),
        "watch": ("watch:watch", "Watch a run from another terminal."),
        "report": ("report:report", "Write a page with all pictures of one run or several."),
        "compare": ("compare:compare", "Compare runs: means, deviations, a paired test."),
    },
    "Use it": {
        "specialize": ("deployment:specialize", "Find the fastest program for a ticket on this machine."),
        "energy": ("energy:energy", "Measure the energy of inference, dense and sparse."),
        "breakeven": ("energy:breakeven", "After how many inferences does a ticket pay back its search?"),
    },
    "Study it": {
        "branch": ("branching:branch", "Continue from a round of a run with other settings."),
        "transfer": ("branching:transfer", "Train a run's tickets on another data set."),
        "methods": ("methods:methods", "Compare published methods at one density."),
        "connectivity": ("connectivity:connectivity", "Find the step from which on training is stable."),
    },
    "Run it elsewhere": {
        "export": ("deployment:export", "Write a ticket as a file for other programs."),
        "import": ("checkpoint_import:import_", "Convert another program's checkpoint to safetensors."),
    },
    "Look up": {
        "archs": ("listings:archs", "List the networks."),
        "datasets": ("listings:datasets", "List the data sets; `datasets show NAME` describes one."),
        "recipes": ("listings:recipes", "List the recipes: settings of papers."),
        "config": ("config:config", "Check settings, and print and explain them."),
    },
    "This machine": {
        "verify": ("verify:verify", "Check a run's files for damage."),
        "build-kernels": ("build_kernels:build_kernels", "Build the sparse engine's kernels now."),
        "benchmark": ("benchmark:app", "Measure this library on this machine."),
    },
}
_TARGETS = {name: target for group in COMMANDS.values() for name, (target, _) in group.items()}

app = typer.Typer(
    name="lthfunc",
    help="Find winning lottery tickets: small subnetworks that train as well as the whole network.",
    epilog="Start with: lthfunc prune    (a ticket for LeNet-300-100 on bundled digits, in less than a minute)",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class LazyCommand(TyperCommand):
    """A command as lists show it; its module is imported when it is used."""

    @functools.cached_property
    def loaded(self) -> Any:
        """The command with its parameters."""
        module, _, name = _TARGETS[str(self.name)].partition(":")
        found = getattr(importlib.import_module(f".{module}", __package__), name)
        if not isinstance(found, typer.Typer):
            function, found = found, typer.Typer(add_completion=False)
            found.command(self.name)(function)
        return get_command(found)

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of a call, whose command is the loaded one."""
        return self.loaded.make_context(info_name, args, parent, **extra)


for _group, _commands in COMMANDS.items():
    for _name, (_, _line) in _commands.items():
        app.command(_name, cls=LazyCommand, help=_line, rich_help_panel=_group)(lambda: None)


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
        no_room = not full and "temporary directory" in why  # may not have a file name
        if not (full or no_room) and None in (error.filename, error.errno):
            raise
        where = f"{error.filename}: " if error.filename else ""
        hint = "; free some space there, or set TMPDIR to another folder" if no_room else ""
        return _complain(f"{where}{why}{hint}; finished results are kept", 3)
    except typer.TyperException as error:
        _hide_former_names(error)
        return _complain(error.format_message(), error.exit_code) if error.format_message() else error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return _complain("interrupted", 130)
    return code if isinstance(code, int) else 0


def _hide_former_names(error: Any) -> None:
    """Leave hidden options out of what the message on an unknown one suggests."""
    if getattr(error, "possibilities", None):
        hidden = {flag for each in error.ctx.command.params if getattr(each, "hidden", False) for flag in each.opts}
        error.possibilities = [each for each in error.possibilities if each not in hidden]


def launched() -> bool:
    """Whether torchrun started this process as one of several ranks."""
    return all(name in os.environ for name in _LAUNCHED) and os.environ["WORLD_SIZE"] != "1"


def _complain(message: str, code: int) -> int:
    say(f"lthfunc: {' '.join(message.split())}")
    return code
