"""Studies of methods: the runs of which one consists, each of a method at some densities."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from lthfunc.catalog.methods import METHODS, method_entry
from lthfunc.catalog.training import SCHEDULES
from lthfunc.data.images import Observe
from lthfunc.errors import UserError, invalid
from lthfunc.experiments.config import SETTINGS, Config, to_mapping
from lthfunc.experiments.devices import choose_device
from lthfunc.experiments.engine_choice import why_not_sparse_engine
from lthfunc.experiments.iterative import Plan
from lthfunc.experiments.plan import PreparedPlan, prepare
from lthfunc.experiments.resolve import METHOD_DEFAULTS, resolved
from lthfunc.experiments.schema import from_mapping
from lthfunc.trees.atomic_io import safe_file_name

#: The name of the run that trains the dense network alone.
DENSE = "dense"


class StudyRun(NamedTuple):
    """A run of a study. name: of its folder. config: resolved. rounds: density -> the round that reaches it."""

    name: str
    method: str
    config: Config
    rounds: dict[float, int]


def study_runs(shared: Config, methods: Sequence[str], densities: Sequence[float]) -> list[StudyRun]:
    """The runs of methods with shared settings. Raises UserError where these exclude a method.

    A method that prunes before or during one training has a round for each density, and so has an iterative one, with
    further rounds between them. One that prunes its dense network once has a run for each.
    """
    runs = [run for method in methods for run in _runs_of(shared, method, densities)]
    if len({each.name for each in runs}) < len(runs):
        raise invalid("--method", ", ".join(methods), "different names, which are those of folders")
    return runs


def _runs_of(shared: Config, method: str, densities: Sequence[float]) -> list[StudyRun]:
    entry, name = method_entry(method), safe_file_name(method.rpartition(":")[2])
    usual = int({**METHOD_DEFAULTS, **entry.defaults, **entry.settings}["rounds"])
    if not usual:
        return [StudyRun(name, method, _config(shared, method, {}), {1.0: 0})]
    if usual == 1 and not entry.at_init:
        return [
            StudyRun(f"{name}-{each!r}", method, _config(shared, method, {"density": each, "rounds": 1}), {each: 1})
            for each in densities
        ]
    planned = list(densities) if entry.at_init else with_rounds_between(densities, shared.rounds or usual)
    at = {each: planned.index(each) + 1 for each in densities}
    several = {"densities": ",".join(map(repr, planned))}
    given: dict[str, Any] = several if densities[1:] else {"density": densities[0], "rounds": len(planned)}
    return [StudyRun(name, method, _config(shared, method, given), at)]


def with_rounds_between(densities: Sequence[float], rounds: int) -> list[float]:
    """Falling densities, and others between them, as many in all as there are rounds, at least one for each.

    Each part of the way gets its share of the rounds, which then prune the same fraction of what is left.
    """
    found, before, whole = list[float](), 1.0, math.log(1 / densities[-1])
    for ahead, density in zip(reversed(range(len(densities))), densities, strict=True):
        end = min(round(rounds * math.log(1 / density) / whole), rounds - ahead)  # a round for each that comes
        steps = max(1, end - len(found))
        found += [before * (density / before) ** (k / steps) for k in range(1, steps)] + [density]
        before = density
    return found


def _config(shared: Config, method: str, given: Mapping[str, object]) -> Config:
    """A method's settings: the shared ones that it takes, its own, and how far it prunes."""
    entry = method_entry(method)
    gone = {"density", "rounds", *SETTINGS["density"].instead_of}
    values = {name: value for name, value in to_mapping(shared).items() if name not in gone}
    values |= {**entry.settings, "method": method}
    for table, chosen in ((METHODS, method), (SCHEDULES, str(values["schedule"]))):
        for name in table.settings - {*table.takes(chosen)}:
            values.pop(name, None)
    if method == "imp-tuned" and values["schedule"] == "constant":
        raise UserError(
            "--method: imp-tuned needs a decreasing --schedule: otherwise the last rate is also the first, as in imp-lr"
        )
    return resolved(from_mapping({**values, **given}))


def meaningful_runs(
    shared: Config, asked: Sequence[str], densities: Sequence[float]
) -> tuple[list[StudyRun], dict[str, str]]:
    """(the runs of the methods that were asked for, or else of all that these settings allow, why others are left out).

    Raises UserError where settings exclude a method that was asked for.
    """
    if asked:
        return study_runs(shared, asked, densities), {}
    runs, left = list[StudyRun](), dict[str, str]()
    for method in METHODS:
        try:
            runs += study_runs(shared, [method], densities)
        except UserError as error:
            left[method] = str(error)
    if not runs:
        raise UserError(next(iter(left.values())))
    return runs, left


def decided_alike(configs: Sequence[Config], observe: Observe | None = None) -> tuple[list[Config], PreparedPlan]:
    """(the settings of all runs with the same device, engine and threads, a plan whose data they can share).

    An open engine is the sparse one if possible, otherwise eager, since masks change often; a training has one thread,
    since many can run at once. Raises UserError.
    """
    first = replace(configs[0], threads=configs[0].threads or 1)
    prepared = prepare(replace(first, engine="eager") if first.engine == "auto" else first, observe)
    engine = prepared.config.engine
    work, data = prepared.plan.trainer.work, prepared.plan.trainer.data
    if first.engine == "auto" and why_not_sparse_engine(prepared.config, work, data) is None:
        engine = "sparse/eager"
    device, threads = prepared.config.device, first.threads
    alike = [replace(each, device=device, engine=engine, threads=threads) for each in configs]
    return [prepared.config, *alike[1:]] if engine == prepared.config.engine else alike, prepared


class StudyPlans(Mapping[str, Plan]):
    """The plans of a study by run, each made when it is first asked for; those on a device share data and network.

    like: a plan whose data they share.
    """

    def __init__(self, configs: Mapping[str, Config], like: PreparedPlan | None = None) -> None:
        self._configs, self._prepared = dict(configs), dict[str, PreparedPlan]()
        self._like = {like.config.device: like} if like else {}

    def prepared(self, name: str) -> PreparedPlan:
        """The plan of a run, and its settings. Raises UserError."""
        if name not in self._prepared:
            config = self._configs[name]
            like = self._like.get(choose_device(config.device))
            self._prepared[name] = like if like and like.config == config else prepare(config, like=like)
            self._like.setdefault(self._prepared[name].config.device, self._prepared[name])
        return self._prepared[name]

    def __getitem__(self, name: str) -> Plan:
        return self.prepared(name).plan

    def __iter__(self) -> Iterator[str]:
        return iter(self._configs)

    def __len__(self) -> int:
        return len(self._configs)


def runs_that_can_be(
    runs: Sequence[StudyRun], plans: StudyPlans, *, asked: bool
) -> tuple[list[StudyRun], dict[str, str]]:
    """(the runs whose plans can be made, with all that these decided; why other methods, or densities, are left out).

    asked: whether each method was asked for. Raises UserError if one can't be that was.
    """
    able, lost = list[StudyRun](), list[tuple[StudyRun, str]]()
    for run in runs:
        try:
            able.append(run._replace(config=plans.prepared(run.name).config))
        except UserError as error:
            if asked:
                raise UserError(f"{error} [{run.name}]") from error
            lost.append((run, str(error)))
    remain = {each.method for each in able}
    return able, {_left_out(run) if run.method in remain else run.method: why for run, why in lost}


def _left_out(run: StudyRun) -> str:
    """A run of a method that has others, in words."""
    return f"{run.method} at {', '.join(f'{100 * each:g} %' for each in run.rounds)}"
