"""Mutation testing: which small changes of the library would no test notice?

    python tests/mutation --only lthfunc/sparsify/budgets.py --near 4
    python tests/mutation --share 0.1 --seed 0 --workers 2

Each mutant runs the tests that run its line, the quickest first. A mutant of a function is put into a fork of a process
that has imported the library and collected the tests (patching.py); any other, or all with --anew, into one that has
torch imported. cosmic-ray starts a process for each (3 s of imports alone), and mutmut's trampolines around all
functions break those that torch.compile takes whole. All tests take part but those marked slow, of which one would be
all that a mutant has time for, and those that the trace of their file has no time for (--patience).

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
import importlib
import json
import math
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
from forking import BROKEN, UNCHANGED, Child, Overlay, forked, prepare
from mutants import Mutant, mutants_of
from nearest import nearest
from patching import functions_of, put
from patterns import PACKAGES, library_files, pattern_among, test_files
from results import results_in, summarise
from running import ROOT, Collected, Ordered, run_items, run_pytest, source_of

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
        chosen, whole = _chosen(options)
        tests = _covered(options, whole, overlays, work)
        results = results_in(options.folder)
        known = (
            set(results) if not options.again else {n for n, r in results.items() if r["result"] not in options.again}
        )
        todo = [] if options.summary else [each for each in chosen if each.name not in known]
        print(f"{sum(map(len, whole.values())):,} mutants, {len(chosen):,} drawn, {len(todo):,} to run", flush=True)
        left = todo if options.anew else _run_collected(options, todo, tests, overlays, work)
        _run_all(options, left, tests, overlays, work)
        summarise({each.name: each for each in chosen}, results_in(options.folder), whole)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _options() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="of each file's mutants, drawn at random")
    parser.add_argument("--limit", type=int, help="about so many mutants in all, instead of a share")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--workers", type=int, default=2, help="mutants at a time")
    files = pattern_among(library_files(ROOT), "files such as lthfunc/sparsify/scores.py")
    named = pattern_among(test_files(ROOT), "names in tests/, such as test_scores.py")
    parser.add_argument("--only", nargs="+", default=["*"], type=files, help="files that fit one of these patterns")
    parser.add_argument("--again", action="append", default=[], help="run those with this result again (survived)")
    parser.add_argument("--budget", type=float, default=40.0, help="processor seconds of tests for a mutant")
    parser.add_argument(
        "--tests", nargs="+", default=["test_*.py"], type=named, help="files of tests that fit one of these"
    )
    parser.add_argument("--near", type=int, help="of those, for each file changed, so many that use most of its names")
    parser.add_argument("--patience", type=float, default=150.0, help="processor seconds for a file under the trace")
    parser.add_argument("--anew", action="store_true", help="import the library and collect tests for each mutant")
    parser.add_argument("--retrace", action="store_true", help="find out anew what tests run, changed or not")
    parser.add_argument("--folder", type=Path, default=ROOT / ".mutation", help="where results are kept")
    parser.add_argument("--summary", action="store_true", help="of results that are there; run nothing")
    return parser.parse_args()


# ---- tests ----


def _covered(options: Any, changed: Collection[str], overlays: Sequence[Overlay], work: Path) -> dict[str, Covering]:
    """Each test and what it runs, kept from run to run for files of tests that have not changed."""
    folder = options.folder / "covering"
    folder.mkdir(exist_ok=True)
    fitting = [path for pattern in options.tests for path in sorted((ROOT / "tests").glob(pattern))]
    files = list(dict.fromkeys(fitting if options.near is None else nearest(ROOT, changed, fitting, options.near)))
    outs = {path: folder / f"{path.stem}.json" for path in files}
    stale = [path for path in files if not outs[path].exists() or outs[path].stat().st_mtime < path.stat().st_mtime]
    old = [] if options.summary else files if options.retrace else stale

    def traced(path: Path, overlay: Overlay) -> tuple[Callable[[], int], float]:
        def go() -> int:
            recorder = Recorder(overlay.path, PACKAGES, work / f"{path.stem}.raw")
            # One slow test would be all that a mutant has time for.
            return run_pytest([str(path.relative_to(ROOT)), "-m", "not slow"], work / f"base-{path.stem}", recorder)

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


# ---- mutants ----


def _chosen(options: Any) -> tuple[list[Mutant], dict[str, list[Mutant]]]:
    """The sample, the same share of each file, and all mutants by file."""
    files = [file for file in library_files(ROOT) if any(fnmatch.fnmatch(file, each) for each in options.only)]
    whole = {file: mutants_of(ROOT, file) for file in files}
    for file in whole:
        source_of(file)
    total = sum(map(len, whole.values()))
    share = options.limit / total if options.limit else options.share
    chosen = []
    for file, mutants in whole.items():
        count = min(len(mutants), math.ceil(share * len(mutants)))
        drawn = random.Random(f"{options.seed}/{file}").sample(mutants, count)
        chosen += drawn
    random.Random(options.seed).shuffle(chosen)
    return chosen, whole


#: (a mutant, its tests, in order, how long some of them may take [s], where the name of one that fails is written) ->
#: the work of a child that tries it.
Trial = Callable[[Mutant, list[str], Callable[[Sequence[str]], float], Path], Callable[[], int]]


def _run_collected(
    options: Any, todo: list[Mutant], tests: dict[str, Covering], overlays: Sequence[Overlay], work: Path
) -> list[Mutant]:
    """Try mutants of functions in forks of a process that has imported the library and collected the tests.

    Returns those that are left: of what is done as files are imported, and of functions that it cannot change.
    """
    fitting = [each for each in todo if each.runs == "line"]
    files = {name.partition("::")[0] for each in fitting for name in tests_for(ROOT, each, tests, options.budget)[0]}
    if not files:
        return todo

    def use(items: dict[str, Any]) -> None:
        for file in {each.file for each in fitting}:
            importlib.import_module(file.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
        functions = functions_of(str(overlays[0].path))

        def trial(
            mutant: Mutant, names: list[str], limit: Callable[[Sequence[str]], float], failed: Path
        ) -> Callable[[], int]:
            source, file = source_of(mutant.file), str(overlays[0].path / mutant.file)

            def go() -> int:
                if not put(functions.get(file, []), file, source, mutant.applied(source)):
                    return UNCHANGED
                return run_items([items[name] for name in names if name in items], failed)

            return go

        _run_all(options, fitting, tests, overlays, work, trial)

    run = functools.partial(run_pytest, [*sorted(files), "-s"], work / "collected", Collected(use))
    driver = Child(overlays[0], run, ROOT, None, math.inf)
    try:
        while driver.result() is None:
            time.sleep(0.1)
    finally:
        driver.stop()
    tried = (work / "tried").read_text().split() if (work / "tried").exists() else []
    return [each for each in todo if each.name not in tried]


def _anew(tests: dict[str, Covering], work: Path) -> Trial:
    """Trials that import the library, collect some files of tests, and run those of a mutant, then of more files."""

    def trial(
        mutant: Mutant, names: list[str], limit: Callable[[Sequence[str]], float], failed: Path
    ) -> Callable[[], int]:
        files = list(dict.fromkeys(name.partition("::")[0] for name in names))

        def go() -> int:
            begun = 0
            for count in _AT_A_TIME:
                some = files[begun : begun + count]
                mine = [name for name in names if name.partition("::")[0] in some]
                run = functools.partial(run_pytest, some, work / mutant.name, Ordered(mine, tests.keys(), failed))
                if (status := forked(run, limit(mine))) not in (0, 5):  # 5: the change has made other tests of all
                    return status
                begun += count
                if begun >= len(files):
                    break
            return 0

        return go

    return trial


def _run_all(
    options: Any, todo: list[Mutant], tests: dict[str, Covering], overlays: Sequence[Overlay], work: Path,
    trial: Trial | None = None,
) -> None:  # fmt: skip
    about: dict[str, tuple[list[str], str]] = {}
    trial = trial or _anew(tests, work)

    def limit(some: Sequence[str]) -> float:
        return 20 + 3 * sum(tests[name].seconds for name in some)

    def begun(mutant: Mutant, overlay: Overlay) -> tuple[Callable[[], int], float]:
        names, what = tests_for(ROOT, mutant, tests, options.budget)
        about[mutant.name] = (names, what)
        overlay.put(mutant.file, mutant.applied(source_of(mutant.file)))
        go = trial(mutant, names, limit, work / f"{mutant.name}.failed")
        return (go if names else lambda: 0), limit(names)

    def told(mutant: Mutant, status: int | str, seconds: float) -> None:
        if status == UNCHANGED:
            return
        with (work / "tried").open("a") as out:
            out.write(f"{mutant.name}\n")
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
        overlay.put(mutant.file, source_of(mutant.file))

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
            child.stop()


if __name__ == "__main__":
    main()
