"""Mutation testing: which small changes of the library would no test notice?

    python tests/mutation --share 0.1 --seed 0 --workers 2

Each mutant runs the tests that run its line, the quickest first, in a fork of a process that has torch imported; a
mutant takes seconds where cosmic-ray starts a process for each (3 s of imports alone), and mutmut's trampolines around
all functions break those that torch.compile takes whole. All tests take part but those marked slow, of which one would
be all that a mutant has time for, and those that the trace of their file has no time for (--patience).

What is left out, by rule (exempt.py): docstrings, annotations, names of types, imports, assertions (a zip's strict is
one), words for people (errors, prints, text with a space), conversions of type, streams of random numbers by another
name, and what only a GPU runs or notices (where something lies, say).
Survivors that are no fault are listed with the reason in tests/mutation_survivors.toml.

Results are lines of JSON in .mutation/results.jsonl; what is there is not run again, unless --again asks for it.
"""

from __future__ import annotations

import argparse
import fnmatch
import functools
import json
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from choosing import tests_for
from covering import Covering, Recorder, keep, kept
from forking import BROKEN, Child, Overlay, forked, prepare
from mutants import Mutant, mutants_of
from results import results_in, summarise

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("lthfunc/sparsify", "lthfunc/training", "lthfunc/experiments", "lthfunc/energy")
#: Files of tests that are collected at a time, quickest first: most mutants are noticed by the first.
_AT_A_TIME = (2, 6, 1_000)


def main() -> None:
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that children are ended as well
    prepare()
    work = Path(tempfile.mkdtemp(prefix="mutation-"))
    options.folder.mkdir(exist_ok=True)
    try:
        overlays = [Overlay(ROOT, work / f"library{number}") for number in range(options.workers)]
        tests = _covered(options, overlays, work)
        chosen, sizes = _chosen(options)
        results = results_in(options.folder)
        known = (
            set(results) if not options.again else {n for n, r in results.items() if r["result"] not in options.again}
        )
        todo = [] if options.summary else [each for each in chosen if each.name not in known]
        print(f"{sum(sizes.values()):,} mutants, {len(chosen):,} drawn, {len(todo):,} to run", flush=True)
        _run_all(options, todo, tests, overlays, work)
        summarise({each.name: each for each in chosen}, results_in(options.folder), sizes)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _options() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="of each file's mutants, drawn at random")
    parser.add_argument("--limit", type=int, help="about so many mutants in all, instead of a share")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--workers", type=int, default=2, help="mutants at a time")
    parser.add_argument("--only", default="*", help="files that fit this pattern")
    parser.add_argument("--again", action="append", default=[], help="run those with this result again (survived)")
    parser.add_argument("--budget", type=float, default=40.0, help="processor seconds of tests for a mutant")
    parser.add_argument("--tests", nargs="+", default=["test_*.py"], help="files of tests that fit one of these")
    parser.add_argument("--patience", type=float, default=150.0, help="processor seconds for a file under the trace")
    parser.add_argument("--retrace", action="store_true", help="find out anew what tests run, changed or not")
    parser.add_argument("--folder", type=Path, default=ROOT / ".mutation", help="where results are kept")
    parser.add_argument("--summary", action="store_true", help="of results that are there; run nothing")
    return parser.parse_args()


# ---- tests ----


def _covered(options: Any, overlays: Sequence[Overlay], work: Path) -> dict[str, Covering]:
    """Each test and what it runs, kept from run to run for files of tests that have not changed."""
    folder = options.folder / "covering"
    folder.mkdir(exist_ok=True)
    fitting = [path for pattern in options.tests for path in sorted((ROOT / "tests").glob(pattern))]
    files = list(dict.fromkeys(fitting))
    outs = {path: folder / f"{path.stem}.json" for path in files}
    stale = [path for path in files if not outs[path].exists() or outs[path].stat().st_mtime < path.stat().st_mtime]
    old = [] if options.summary else files if options.retrace else stale

    def traced(path: Path, overlay: Overlay) -> tuple[Callable[[], int], float]:
        def go() -> int:
            recorder = Recorder(overlay.path, PACKAGES, work / f"{path.stem}.raw")
            # One slow test would be all that a mutant has time for.
            return _pytest([str(path.relative_to(ROOT)), "-m", "not slow"], work / f"base-{path.stem}", [recorder])

        return go, options.patience

    def told(path: Path, status: int | str, seconds: float) -> None:
        keep(work / f"{path.stem}.raw", overlays[0].path, outs[path])
        print(f"  {path.name}: {status}, {len(kept(outs[path]))} tests, {seconds:.0f} s", flush=True)

    if old:
        print(f"what {len(old)} files of tests run:", flush=True)
        _side_by_side(old, overlays, work, traced, told)
    found: dict[str, Covering] = {}
    for out in filter(Path.exists, outs.values()):
        found |= kept(out)
    return found


def _pytest(arguments: list[str], temporary: Path, plugins: list[object]) -> int:
    import pytest

    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(temporary) + "-hypothesis"
    # The project's own folder, which pytest puts first, has the library as it is, not the overlay's.
    places = f"pythonpath={os.environ['PYTHONPATH']} {ROOT}"
    return pytest.main(
        ["-o", places, "-q", "-x" if len(plugins) == 0 or not isinstance(plugins[0], Recorder) else "-q", "--no-header",
         "-p", "no:cacheprovider", "-p", "no:xdist", "--hypothesis-seed=0", f"--basetemp={temporary}", *arguments],
        plugins=plugins,
    )  # fmt: skip


# ---- mutants ----


def _chosen(options: Any) -> tuple[list[Mutant], dict[str, int]]:
    """The sample, the same share of each file, and how many mutants files have."""
    files = sorted(str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    whole = {file: mutants_of(ROOT, file) for file in files if fnmatch.fnmatch(file, options.only)}
    total = sum(map(len, whole.values()))
    share = options.limit / total if options.limit else options.share
    chosen = []
    for file, mutants in whole.items():
        count = min(len(mutants), math.ceil(share * len(mutants)))
        drawn = random.Random(f"{options.seed}/{file}").sample(mutants, count)
        chosen += drawn
    random.Random(options.seed).shuffle(chosen)
    return chosen, {file: len(mutants) for file, mutants in whole.items()}


class Ordered:
    """A plugin: tests in the order they are named in, and which one failed."""

    def __init__(self, names: list[str], known: Collection[str], out: Path) -> None:
        self._rank, self._known = {name: number for number, name in enumerate(names)}, known
        self._functions = {name.partition("[")[0] for name in names}
        self._out = out

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        mine = [item for item in items if item.nodeid in self._rank or self._is_new(item.nodeid)]
        items[:] = sorted(mine, key=lambda item: self._rank.get(item.nodeid, -1))

    def _is_new(self, name: str) -> bool:
        """Whether it is one of the tests named, of what the change has made its parameters."""
        return name not in self._known and name.partition("[")[0] in self._functions

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self._out.write_text(report.nodeid)

    def pytest_sessionfinish(self, session: Any, exitstatus: int) -> None:
        sys.stdout.flush()
        os._exit(exitstatus)  # tests that close what pytest holds open would have it fail from here on


def _run_all(
    options: Any, todo: list[Mutant], tests: dict[str, Covering], overlays: Sequence[Overlay], work: Path
) -> None:
    about: dict[str, tuple[list[str], str]] = {}

    def begun(mutant: Mutant, overlay: Overlay) -> tuple[Callable[[], int], float]:
        names, what = tests_for(ROOT, mutant, tests, options.budget)
        about[mutant.name] = (names, what)
        overlay.put(mutant.file, mutant.applied((ROOT / mutant.file).read_bytes()))
        files = list(dict.fromkeys(name.partition("::")[0] for name in names))

        def go() -> int:
            begun = 0
            for count in _AT_A_TIME:
                some = files[begun : begun + count]
                mine = [name for name in names if name.partition("::")[0] in some]
                ordered = Ordered(mine, tests.keys(), work / f"{mutant.name}.failed")
                run = functools.partial(_pytest, some, work / mutant.name, [ordered])
                if (status := forked(run)) not in (0, 5):  # 5: the change has made other tests of all of them
                    return status
                begun += count
                if begun >= len(files):
                    break
            return 0

        return (go if names else lambda: 0), 20 + 3 * sum(tests[name].seconds for name in names)

    def told(mutant: Mutant, status: int | str, seconds: float) -> None:
        names, what = about[mutant.name]
        failed = work / f"{mutant.name}.failed"
        result = "survived" if status == 0 else status if isinstance(status, str) else "killed"
        if status == BROKEN and not failed.exists():
            result = "broken"
            print("\n".join(out.read_text()[-1500:] for out in work.glob("out*")))
        item = {
            "name": mutant.name, "result": result, "file": mutant.file, "line": mutant.first, "where": mutant.where,
            "code": mutant.code, "change": mutant.change, "covered": what, "tests": len(names),
            "by": failed.read_text() if failed.exists() else None, "seconds": round(seconds, 1),
        }  # fmt: skip
        with (options.folder / "results.jsonl").open("a", encoding="utf-8") as out:
            out.write(json.dumps(item, ensure_ascii=False) + "\n")
        print(f"{result:9} {mutant.file}:{mutant.first} {mutant.where}: {mutant.change}", flush=True)
        shutil.rmtree(work / mutant.name, ignore_errors=True)

    def restored(mutant: Mutant, overlay: Overlay) -> None:
        overlay.put(mutant.file, (ROOT / mutant.file).read_bytes())

    _side_by_side(todo, overlays, work, begun, told, restored)


def _side_by_side(
    items: Sequence[Any],
    overlays: Sequence[Overlay],
    work: Path,
    begin: Callable[[Any, Overlay], tuple[Callable[[], int], float]],
    told: Callable[[Any, int | str, float], None],
    after: Callable[[Any, Overlay], None] = lambda item, overlay: None,
) -> None:
    """One child per overlay at a time."""
    waiting, running = list(items)[::-1], dict[int, tuple[Any, Child]]()
    try:
        while waiting or running:
            for slot, overlay in enumerate(overlays):
                if slot not in running and waiting:
                    item = waiting.pop()
                    go, limit = begin(item, overlay)
                    running[slot] = item, Child(overlay, go, ROOT, work / f"out{slot}", limit)
            for slot, (item, child) in list(running.items()):
                if (status := child.result()) is not None:
                    del running[slot]
                    after(item, overlays[slot])
                    told(item, "timeout" if child.timed_out else status, child.seconds)
            time.sleep(0.05)
    finally:
        for _, child in running.values():
            child.end()


if __name__ == "__main__":
    main()
