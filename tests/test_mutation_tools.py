"""The parts of `python tests/mutation` that decide what a mutant is tried by, and put it into a running process."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests" / "mutation"))

from mutants import mutants_of  # noqa: E402
from nearest import nearest  # noqa: E402
from patching import functions_of, put  # noqa: E402
from patterns import library_files, pattern_among, test_files as files_of_tests  # noqa: E402

SOURCE = """
FIRST = 1


def outer(x):
    def inner(y):
        return x - y

    return inner


class Holder:
    def value(self):
        return [each * 3 for each in (FIRST, 2)]


kept, table = outer(10), {"value": Holder.value, "outer": outer}
"""


@pytest.fixture(name="module")
def a_module(tmp_path: Path) -> ModuleType:
    """That source, imported."""
    path = tmp_path / "of_tests.py"
    path.write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("of_tests", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def changed(module: ModuleType, old: str, new: str) -> bool:
    assert old in SOURCE
    file = str(module.__file__)
    functions = functions_of(str(Path(file).parent))[file]
    return put(functions, file, SOURCE.encode(), SOURCE.replace(old, new).encode())


def test_a_changed_function_is_called_by_whoever_has_it(module: ModuleType) -> None:
    """Also a closure that was made before, and a method in a table; what hasn't changed stays."""
    assert (module.kept(1), module.table["outer"](5)(2), module.Holder().value()) == (9, 3, [3, 6])
    assert changed(module, "x - y", "x + y")
    assert (module.kept(1), module.table["outer"](5)(2), module.Holder().value()) == (11, 7, [3, 6])
    assert changed(module, "* 3", "/ 2")
    assert module.table["value"](module.Holder()) == [0.5, 1]


def test_what_is_done_as_a_file_is_imported_cannot_be_put_there(module: ModuleType) -> None:
    assert not changed(module, "FIRST = 1", "FIRST = 2")
    assert not changed(module, "return x - y", "return y")  # the closure kept has an x
    assert (module.kept(1), module.Holder().value()) == (9, [3, 6])


def test_files_of_tests_are_found_by_a_methods_name_and_by_what_a_file_defines() -> None:
    tests = sorted((ROOT / "tests").glob("test_*.py"))
    found = nearest(ROOT, ["lthfunc/experiments/methods/granet.py", "lthfunc/sparsify/topology.py"], tests, 1)
    assert [path.name for path in found] == ["test_exchanges.py", "test_masks_in_training_by_hand.py"]
    assert len(nearest(ROOT, ["lthfunc/sparsify/scores.py"], tests, 3)) == 3


def test_mutants_are_of_one_place_each(tmp_path: Path) -> None:
    """Each changes the source, and none twice alike; an applied one is as it says."""
    (tmp_path / "a.py").write_text(SOURCE)
    found = mutants_of(tmp_path, "a.py")
    sources = [each.applied(SOURCE.encode()) for each in found]
    assert len({each.name for each in found}) == len(set(sources)) == len(found)
    assert SOURCE.encode() not in sources
    assert {each.change for each in found if each.where == "outer.inner"} == {"x - y → x + y"}
    assert {each.runs for each in found} == {"line", "file"}


def test_patterns_that_fit_no_file_are_refused() -> None:
    """By which every mutant would survive, as no test would be tried."""
    tests, files = files_of_tests(ROOT), library_files(ROOT)
    for known, pattern in ((tests, "test_mutation_*.py"), (files, "lthfunc/sparsify/*.py"), (files, "*/scores.py")):
        assert pattern_among(known, "")(pattern) == pattern
    for known, pattern in ((tests, "tests/test_scores.py"), (files, "scores.py"), (files, "lthfunc/trees/ops.py")):
        with pytest.raises(argparse.ArgumentTypeError, match=rf"^invalid value '{pattern}' \(expected .* fits this\)"):
            pattern_among(known, "this")(pattern)
