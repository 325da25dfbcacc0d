"""Parts of the page as HTML. Everything that comes from files is escaped here."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from lthfunc.errors import UserError
from lthfunc.experiments.config import SETTINGS, Config, filled, to_mapping
from lthfunc.experiments.iterative import TICKET
from lthfunc.experiments.records import Row
from lthfunc.experiments.resolve import resolved
from lthfunc.printable import counted, printable
from lthfunc.reports.charts import Picture
from lthfunc.reports.curves import look_of
from lthfunc.reports.page.run_view import RunView
from lthfunc.reports.run_comparison import differing
from lthfunc.reports.tables import accuracy_cells, accuracy_heads, with_unit
from lthfunc.reports.verdict import verdict
from lthfunc.runs.environment import machine_in_words


def section(name: str, title: str, body: str) -> str:
    """A section with its heading."""
    return f'<section id="{escape(name)}"><h2>{escape(title)}</h2>{body}</section>'


def figures(pictures: Iterable[tuple[str, Picture]]) -> str:
    """Placeholders for pictures, which the script finds by their keys."""
    return '<div class="grid">' + "".join(_figure(key, picture) for key, picture in pictures) + "</div>"


def _figure(key: str, picture: Picture) -> str:
    caption = f"<figcaption>{escape(picture.caption)}</figcaption>" if picture.caption else ""
    return (
        f'<figure><h3>{escape(picture.title)}</h3><div class="plot" role="img" aria-label="{escape(picture.title)}" '
        f'data-chart="{escape(key)}"></div>{caption}</figure>'
    )


def card(run: RunView) -> str:
    """A summary of a run: what it is, its winning ticket, and what is missing."""
    lines = []
    if run.config is not None:
        seeds = len({item["seed"] for item in run.records})
        numbers = {
            "round": filled(run.config.rounds),
            "seed": seeds or run.config.replicates,
            "training": len(run.records),
        }
        lines.append(f"{run.title}: " + ", ".join(counted(number, noun) for noun, number in numbers.items()))
    if run.choice.winner is not None:
        best, dense = run.choice.winner.row, run.rows[0]
        lines.append(
            f"Winning ticket: round {best.round}, {100 * best.density:.3g} % of the weights, test {best.measured} "
            f"{_test(best)} (dense {_test(dense)})"
        )
    elif words := verdict(run.choice):
        lines.append(words)
    elif run.config is not None and not run.rows:
        lines.append("No training has finished yet.")
    missing = "".join(f"<li>{escape(printable(line))}</li>" for line in run.missing)
    warning = f'<div class="missing"><strong>Missing</strong><ul>{missing}</ul></div>' if missing else ""
    return f'<article class="card"><h3>{escape(run.name)}</h3>' + "".join(
        f"<p>{escape(line)}</p>" for line in lines
    ) + f"{warning}</article>"  # fmt: skip


def _test(row: Row) -> str:
    return with_unit(row.test_accuracy, row.replicates, row.scale)


def results(rows: Sequence[Row]) -> str:
    """The table of a run's results."""
    if not rows:
        return ""
    head = ["round", "variant", "weights left", *accuracy_heads(rows[0].scale), "seconds"]
    body = [
        [
            str(row.round), look_of(row.variant).word, f"{row.kept:,.0f} / {row.total:,}", *accuracy_cells(row),
            f"{row.seconds:.1f}",
        ]
        for row in rows
    ]  # fmt: skip
    return table(head, body, ["" if row.variant == TICKET else "quiet" for row in rows], kind="numbers")


def settings(runs: Sequence[RunView]) -> str:
    """The settings of all runs: those that differ, highlighted, then others that were changed; the rest is folded."""
    known = [(run.name, run.config, to_mapping(run.config)) for run in runs if run.config is not None]
    if not known:
        return ""
    names = dict.fromkeys(name for *_, values in known for name, value in values.items() if value not in ([], {}))
    loud = differing([values for *_, values in known])
    changed = {"arch", "dataset", *(name for _, config, values in known for name in _changed(config, values))}
    first = [name for name in names if name in loud] + [name for name in names if name in changed and name not in loud]
    others = [name for name in names if name not in first]

    def rows(shown: Sequence[str]) -> str:
        body = [[name, *(_value(values.get(name)) for *_, values in known)] for name in shown]
        marks = ["loud" if name in loud else "" for name in shown]
        return table(["setting", *(name for name, *_ in known)], body, marks)

    count = counted(len(others), "setting")
    return f"{rows(first)}<details><summary>{count} with the default value</summary>{rows(others)}</details>"


def _changed(config: Config, values: Mapping[str, Any]) -> list[str]:
    """The settings that somebody chose, which the run would otherwise have decided differently."""
    try:
        usual = to_mapping(resolved(Config(arch=config.arch, dataset=config.dataset)))
    except UserError:  # of a package that is not installed here
        usual = to_mapping(Config())
    return [name for name, value in values.items() if value != usual.get(name) and not SETTINGS[name].decided]


def origins(runs: Sequence[RunView]) -> str:
    """The machine and versions of each run, and the command that repeats it."""
    return "".join(_origin(run) for run in runs if run.config is not None)


def _origin(run: RunView) -> str:
    where, versions = machine_in_words(run.about["machine"])
    config = printable(shlex.quote(str(run.folder / "config.toml")))
    command = f"lthfunc {run.about['command'].replace('transfer', 'prune')} --config {config}"
    typed = [
        re.sub(r"^\S*/(?=lthfunc )", "", printable(each["command"])) for each in run.sessions if each.get("command")
    ]
    commit = next((each["git"]["commit"] for each in run.sessions if (each.get("git") or {}).get("commit")), None)
    text = f"On {where}; {versions}" + (f"; commit {commit}" if commit else "") + "."
    shown = "".join(f"<pre>{escape(line)}</pre>" for line in dict.fromkeys(typed))
    return (
        f"<h3>{escape(run.name)}</h3><p>{escape(text)}</p><p>To reproduce it, bit for bit on such a machine:</p>"
        f"<pre>{escape(command)}</pre>" + (f"<p>It was made by:</p>{shown}" if shown else "")
    )


def table(head: Sequence[str], body: Sequence[Sequence[str]], marks: Sequence[str], kind: str = "") -> str:
    """A table that scrolls sideways where it is too wide. marks: of each row: "quiet", "loud" or ""."""
    rows = "".join(
        f'<tr class="{mark}">' + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        for row, mark in zip(body, marks, strict=True)
    )
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    return f'<div class="wide {kind}"><table><thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table></div>'


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "–"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={each}" for name, each in value.items()) or "–"
    return "–" if value is None else str(value)
