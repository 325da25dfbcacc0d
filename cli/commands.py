"""All commands: the groups in which `lthfunc --help` lists them, their lines there, examples, and where they are."""

from __future__ import annotations

import functools
import importlib
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from lthfunc.errors import invalid

from .narrow_help import fit_narrow


class Command(NamedTuple):
    """target: "module:function", or "module:app" of a typer.Typer. line: of `lthfunc --help`; examples: of its own."""

    target: str
    line: str
    examples: tuple[str, str]


COMMANDS = {
    "Find a ticket": {
        "prune": Command("experiment:prune", "Find a winning ticket: train, prune, rewind", (
            "lthfunc prune", "lthfunc prune --arch lenet5 --dataset mnist --replicates 3 --control reinit",
        )),
        "train": Command("experiment:train", "Train the dense network alone", (
            "lthfunc train --epochs 5 --lr 0.001", "lthfunc train --arch resnet20 --dataset cifar10",
        )),
        "resume": Command("experiment:resume", "Resume an interrupted run, to the same bits", (
            "lthfunc resume runs/RUN", "lthfunc resume runs/RUN --jobs 1",
        )),
        "verify": Command("verify:verify", "Check a run's files for damage", (
            "lthfunc verify runs/RUN", "lthfunc verify runs/RUN --json",
        )),
        "sweep": Command("sweep:sweep", "Try many settings: a grid, or Optuna's search", (
            "lthfunc sweep --grid lr=0.01,0.001 --grid weight-decay=0,1e-4",
            "lthfunc sweep --search lr=1e-4..1e-1 --trials 20 --rounds 0",
        )),
    },
    "Look at it": {
        "info": Command("info:info", "Show a run's settings and results", (
            "lthfunc info runs/RUN", "lthfunc info runs/RUN/winning_ticket.safetensors",
        )),
        "watch": Command("watch:watch", "Watch a run from another terminal", (
            "lthfunc watch runs/RUN", "lthfunc watch runs/RUN --once",
        )),
        "report": Command("report:report", "Write one page with all pictures of runs", (
            "lthfunc report runs/RUN", "lthfunc report runs/RUN runs/OTHER --out both.html",
        )),
        "compare": Command("compare:compare", "Compare runs: means, deviations, a test", (
            "lthfunc compare runs/RUN runs/OTHER", "lthfunc compare runs/RUN runs/OTHER --at 0.33 --markdown",
        )),
    },
    "Use it": {
        "specialize": Command("deployment:specialize", "Find the fastest program for a ticket", (
            "lthfunc specialize runs/RUN", "lthfunc specialize runs/RUN --batch-size 1 --threads 1",
        )),
        "generate": Command("generate:generate", "Write text with a ticket", (
            "lthfunc generate runs/RUN --prompt 'Once upon a time'",
            "lthfunc generate runs/RUN --prompt A --tokens 500 --temperature 0.7",
        )),
        "energy": Command("energy:energy", "Measure the energy of inference", (
            "lthfunc energy runs/RUN", "lthfunc energy runs/RUN --samples 1_000_000 --country DEU",
        )),
        "breakeven": Command("energy:breakeven", "When does a ticket pay back its search?", (
            "lthfunc breakeven runs/RUN --price 0.30", "lthfunc breakeven 1e-3+8e-5/50000 2e-4+3e-4/50000",
        )),
    },
    "Study it": {
        "branch": Command("branching:branch", "Continue from a round with other settings", (
            "lthfunc branch runs/RUN --from-round 1 --rewind lr",
            "lthfunc branch runs/RUN --from-round 2 --score movement --rounds 6",
        )),
        "transfer": Command("branching:transfer", "Train a run's tickets on another data set", (
            "lthfunc transfer runs/RUN --dataset digits",
            "lthfunc transfer runs/RUN --dataset fashionmnist --control reinit",
        )),
        "methods": Command("methods:methods", "Compare published methods of pruning", (
            "lthfunc methods --list", "lthfunc methods --density 0.05 --replicates 3 --out methods",
        )),
        "connectivity": Command("connectivity:connectivity", "Find the step from which training is stable", (
            "lthfunc connectivity --at 0 --at 100", "lthfunc connectivity --run runs/RUN --plot stable.png",
        )),
    },
    "Run it elsewhere": {
        "export": Command("deployment:export", "Write a ticket as a file for other programs", (
            "lthfunc export runs/RUN --to onnx", "lthfunc export runs/RUN --to state-dict --round last",
        )),
        "import": Command("checkpoint_import:import_", "Convert another program's checkpoint", (
            "lthfunc import net.pth", "lthfunc import masks.npz --masks",
        )),
    },
    "This machine": {
        "build-kernels": Command("build_kernels:build_kernels", "Build the sparse engine's kernels now", (
            "lthfunc build-kernels", "CXX=clang++ lthfunc build-kernels",
        )),
        "benchmark": Command("benchmark:app", "Measure the speed of this library here", (
            "lthfunc benchmark training --quick", "lthfunc benchmark sparse --quick",
        )),
    },
    "Lists and settings": {
        "archs": Command("listings:archs", "List the networks", (
            "lthfunc archs", "lthfunc archs resnet20 --dataset cifar100",
        )),
        "datasets": Command("listings:datasets", "List the data sets, or describe one", (
            "lthfunc datasets", "lthfunc datasets show digits --out digits.png",
        )),
        "recipes": Command("listings:recipes", "List settings of papers", (
            "lthfunc recipes", "lthfunc prune --recipe lth-conv --rounds 2",
        )),
        "config": Command("config:config", "Check settings, print and explain them", (
            "lthfunc config runs/RUN", "lthfunc config --explain --density 0.1",
        )),
    },
}  # fmt: skip


#: Columns of a screen below which groups stand above their commands, instead of beside them.
_NARROW = 60


class LazyCommand(TyperCommand):
    """A command as lists show it; its module is imported when it is used."""

    @functools.cached_property
    def loaded(self) -> Any:
        """The command with its parameters, and with examples in its help."""
        about = next(group[self.name] for group in COMMANDS.values() if self.name in group)
        module, _, name = about.target.partition(":")
        found = getattr(importlib.import_module(f".{module}", __package__), name)
        if not isinstance(found, typer.Typer):
            function, found = found, typer.Typer(add_completion=False)
            found.command(self.name)(function)
        command = get_command(found)
        for each in (command, *getattr(command, "commands", {}).values()):
            _name_arguments(each)
            _hide_types(each)
            _refuse_empty_paths(each)
            fit_narrow(each)
        paragraphs = [" ".join(each.split()) for each in (command.help or "").split("\n\n")]
        command.help = "\n\n".join([*paragraphs, "Examples:", "\n".join(f"$ {each}" for each in about.examples)])
        return command

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of a call, whose command is the loaded one."""
        return self.loaded.make_context(info_name, args, parent, **extra)


def _name_arguments(command: Any) -> None:
    """Give a command's arguments capital names, and show them in its usage as RUN, RUN…, [RUN] or [RUN…]."""
    for each in command.params:
        if each.param_type_name == "argument":
            each.metavar = each.metavar or each.name.upper()
            name = each.metavar if each.nargs == 1 else f"{each.metavar}…"
            usage = name if each.required else f"[{name}]"
            each.get_usage_pieces = lambda context, usage=usage: [usage]


def _hide_types(command: Any) -> None:
    """Show what an option takes by its placeholder alone: no <bool> after switches and <list[str]> after arguments."""
    made = command.get_help_option

    def hidden(param: Any) -> Any:
        if param is not None and (param.param_type_name == "argument" or param.is_flag):
            param.display_type_rich = lambda ctx: None
        return param

    command.get_help_option = lambda context: hidden(made(context))
    for each in command.params:
        hidden(each)


#: Placeholders of paths, and what they are in words.
_PATHS = {"FILE": "a file's name", "FOLDER": "a folder's name", "PATH": "a path", "DIR": "a folder's name",
          "RUN": "a run's folder"}  # fmt: skip


def _refuse_empty_paths(command: Any) -> None:
    """Let a command refuse an empty path, as of a variable that is not set: it is the working directory, or no path."""

    def checked(context: Any, param: Any, value: Any) -> Any:
        if "" in (value if isinstance(value, (list, tuple)) else [value]):
            raise invalid(
                param.metavar if param.param_type_name == "argument" else param.opts[0], "", _PATHS[param.metavar]
            )
        return value

    for each in command.params:
        if each.metavar in _PATHS and each.callback is None:
            each.callback = checked


class GroupedCommands(TyperGroup):
    """All commands, whose help fits on one screen."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command. Raises Abort when it is interrupted, of which Typer itself says nothing."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Abort from None

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the groups of commands, a line each."""
        from rich.table import Table
        from rich.text import Text

        from .console import screen

        narrow = screen().width < _NARROW
        width = max(len(name) for commands in COMMANDS.values() for name in commands)
        tables: list[Any] = []
        for group, commands in COMMANDS.items():
            table = Table.grid(padding=(0, 2, 0, 0))  # at the right alone: versions of Rich differ in what joins
            for least in (*(() if narrow else (max(map(len, COMMANDS)),)), width):
                table.add_column(min_width=least, no_wrap=True)
            for number, (name, about) in enumerate(commands.items()):
                first = () if narrow else (Text("" if number else group, "dim"),)
                table.add_row(*first, Text(name, "bold cyan"), about.line)
            tables += [*([Text(group, "dim")] if narrow else []), table, ""]
        before = ", ".join(max(each.opts, key=len) for each in self.get_params(ctx))
        screen().print(
            Text("Usage: lthfunc COMMAND …", "yellow"), "", self.help, "", *tables,
            Text.assemble(("lthfunc COMMAND --help", "bold cyan"), "  explains a command, with examples."),
            f"Before a command: {before}.", self.epilog, sep="\n", highlight=False,
        )  # fmt: skip
