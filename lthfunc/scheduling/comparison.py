"""Methods side by side: each with each seed once, results written as they come, so that a comparison goes on later.

the file: a line on what it is and ran on, then a line per finished (method, seed)
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lthfunc.catalog.methods import METHODS
from lthfunc.errors import UserError, invalid
from lthfunc.experiments.config import FREE, SETTINGS, Config, to_mapping
from lthfunc.experiments.methods.prepare import setting_of
from lthfunc.experiments.methods.setting import Outcome, Setting
from lthfunc.experiments.records import Record
from lthfunc.runs.environment import machine
from lthfunc.runs.json_lines import append_lines, drop_partial_line, read_lines
from lthfunc.sparsify.mask_comparison import collapsed_layers
from lthfunc.training.malloc import keep_freed_memory
from lthfunc.trees.files import save_ticket
from lthfunc.trees.ops import count
from lthfunc.trees.types import Ticket

#: Settings that change no result of a method with a seed.
_FREE = FREE | {name for name, setting in SETTINGS.items() if setting.of_seeds}


def run_method(setting: Setting, method: str, seed: int) -> tuple[Record, Ticket]:
    """One method with one seed, as plain values, and its trained network."""
    begun = time.perf_counter()
    outcome: Outcome = METHODS.make(method, {}, Outcome)(setting, seed)
    masks = outcome.ticket.masks
    whole = count(masks)
    item = {
        "method": method,
        "seed": seed,
        "kept": whole.kept,
        "total": whole.total,
        "density": whole.density,
        "test_accuracy": outcome.test.accuracy,
        "test_loss": outcome.test.loss,
        "steps": outcome.steps,
        "collapsed": list(collapsed_layers(masks)),
        "seconds": round(time.perf_counter() - begun, 3),
    }
    return item, outcome.ticket


def _save(folder: Path, item: Record, ticket: Ticket) -> None:
    """A method's trained network."""
    about = {name: item[name] for name in ("method", "seed", "kept", "total", "steps")}
    save_ticket(folder / f"{item['method']}-seed{item['seed']}.safetensors", ticket, about)


def compare(
    config: Config,
    setting: Setting,
    methods: Sequence[str],
    path: Path | None,
    jobs: int,
    tell: Callable[[Record], None],
    folder: Path | None = None,
) -> list[Record]:
    """Run what is missing of a comparison; returns all its records, in the order of methods and seeds.

    setting: of the config. path: of the file; folder: for the trained networks.

    Raises UserError where the file belongs to other settings.
    """
    records = _earlier(path, config)
    written = None if path is None else path.resolve()  # a link to it is the user's own
    done = {(item["method"], item["seed"]) for item in records}
    seeds = range(config.seed, config.seed + config.replicates)
    tasks = [(method, seed) for seed in seeds for method in methods if (method, seed) not in done]
    for item in _results(config, setting, tasks, min(jobs, len(tasks)), folder):
        records.append(item)
        if written is not None:
            append_lines(written, [{"kind": "result", **item}])
        tell(item)
    wanted = [item for item in records if item["method"] in methods and item["seed"] in seeds]
    return sorted(wanted, key=lambda item: (list(methods).index(item["method"]), item["seed"]))


def _results(
    config: Config, setting: Setting, tasks: Sequence[tuple[str, int]], jobs: int, folder: Path | None
) -> Iterator[Record]:
    if config.on != "local" and tasks:
        from lthfunc.scheduling.calls import called, resources_of  # which need an extra

        calls = [(config, *task, folder is not None) for task in tasks]
        for _, (item, ticket) in called(config.on, _anywhere, calls, **resources_of(config)):
            if folder is not None:
                _save(folder, item, ticket)
            yield item
        return
    if jobs <= 1:
        for method, seed in tasks:
            yield _kept(setting, method, seed, folder)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(config, str(Path.cwd())))
    try:
        for result in as_completed([pool.submit(_task, *task, folder) for task in tasks]):
            yield result.result()
    except BrokenProcessPool as error:
        raise UserError("a worker process ended (out of memory?); the same command goes on") from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in multiprocessing.active_children():
            worker.terminate()


_setting: Setting | None = None


def _begin(config: Config, folder: str) -> None:
    """A worker's life begins: the same plan from the same settings."""
    global _setting
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent ends its workers
    os.chdir(folder)
    keep_freed_memory()
    torch.set_num_threads(config.threads or 1)
    _, _setting = setting_of(config)


def _task(method: str, seed: int, folder: Path | None) -> Record:
    assert _setting is not None
    return _kept(_setting, method, seed, folder)


def _kept(setting: Setting, method: str, seed: int, folder: Path | None) -> Record:
    """A method's record; its trained network goes into the folder."""
    item, ticket = run_method(setting, method, seed)
    if folder is not None:
        _save(folder, item, ticket)
    return item


def _anywhere(config: Config, method: str, seed: int, wanted: bool) -> tuple[Record, Ticket | None]:
    """On a node that has nothing but the settings. wanted: whether the network is."""
    global _setting
    if _setting is None:
        keep_freed_memory()
        torch.set_num_threads(config.threads or 1)
        _, _setting = setting_of(replace(config, on="local"))
    item, ticket = run_method(_setting, method, seed)
    return item, ticket if wanted else None


def _earlier(named: Path | None, config: Config) -> list[Record]:
    """The records of a file that exists, after a check; else the file is begun. named: as the user calls it."""
    if named is None:
        return []
    path = named.resolve()  # a link to it is the user's own
    mine: dict[str, Any] = {name: value for name, value in to_mapping(config).items() if name not in _FREE}
    if path.is_dir():
        raise invalid("--out", str(named), "a file, and this is a folder")
    if not path.exists():
        if not path.parent.is_dir():
            raise UserError(f"--out: {str(named.parent)!r} is not a folder")
        append_lines(path, [{"kind": "methods", "machine": machine(config.device, config.threads), "config": mine}])
        return []
    lines = read_lines(path)
    if not lines or lines[0].get("kind") != "methods":
        raise UserError(f"--out: {str(named)!r} holds something else; name another file")
    theirs = lines[0]["config"]
    different = sorted(name for name in {*mine, *theirs} - _FREE if mine.get(name) != theirs.get(name))
    if different:
        name = different[0]
        raise UserError(
            f"--out: {str(named)!r} has {name} {theirs.get(name)!r}, and here it is {mine.get(name)!r}; "
            "name another file"
        )
    drop_partial_line(path)
    return [{key: value for key, value in line.items() if key != "kind"} for line in lines[1:]]
