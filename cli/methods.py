"""``lthfunc methods``: published methods at one density, in one table."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

from lthfunc.catalog.courses import COURSES
from lthfunc.catalog.methods import METHODS
from lthfunc.errors import invalid
from lthfunc.experiments.metrics import metric_scale

from . import options as o
from .console import put, put_json, put_words, say, screen
from .experiment import settings_of


@o.with_settings("methods")
def methods(
    *,
    method: Annotated[
        list[str] | None,
        o.option(
            "--method",
            "One of `lthfunc methods --list`; repeatable. \\[default: all]",
            "NAME",
            autocompletion=COURSES.complete,
        ),
    ] = None,
    list_: Annotated[bool, o.option("--list", "List the methods.")] = False,
    sources: o.Sources,
    out: Annotated[
        str | None, o.option("--out", "Write results here (.jsonl); the same command then resumes.", "FILE")
    ] = None,
    save: Annotated[
        str | None, o.option("--save", "Save the trained network and masks of every method to this folder.", "FOLDER")
    ] = None,
    plot: o.Plot = None,
    json: o.Json = False,
) -> None:
    """Prune and train a network by each published method, and compare them in one table.

    All reach one density, the share of the weights that remain.
    """
    if list_:
        from .listings import listing

        sources_of = {name: entry.source for name, entry in METHODS.items()}
        known = [(name, METHODS.about(name), sources_of.get(name, "")) for name in METHODS.known()]
        listing(("name", "what it is", "source"), known, spare=("source",))
        return
    asked = tuple(method or ())
    if len(set(asked)) < len(asked):
        raise invalid("--method", ", ".join(asked), "each method once")
    settings = settings_of("methods", sources)
    from lthfunc.energy.meter import check_meter
    from lthfunc.experiments.config import to_mapping
    from lthfunc.experiments.courses.prepare import check_methods, method_context, methods_for
    from lthfunc.experiments.trust import remember_code
    from lthfunc.reports.methods import method_picture, method_rows, method_table, most_accurate
    from lthfunc.runs.method_results import make_checkpoint_folder, open_results
    from lthfunc.scheduling.execute import check_ray
    from lthfunc.scheduling.methods import COMPARED, compare
    from lthfunc.scheduling.queue import Execution

    from .progress import watching_tasks
    from .results import show_suggestions
    from .running import make_folder
    from .training import build_kernels_for, session

    check_ray(settings)
    check_methods(settings, asked)
    if settings.energy:
        check_meter(settings.country)
    settings, context = method_context(settings)
    remember_code(to_mapping(settings))
    chosen, note = methods_for(context, asked)
    if note is not None:
        say(note)
    networks = Path(save) if save else None
    if networks is not None:
        make_folder("--save", networks)
    path = Path(out).resolve() if out else None  # the user may have named a link
    earlier = open_results(Path(out), settings) if out else []
    build_kernels_for(settings)
    folder = None if path is None else make_checkpoint_folder(path)
    again = shlex.join(["lthfunc", *sys.argv[1:]]) if out else None
    with session(settings, again) as (stop, meter), watching_tasks(len(chosen) * settings.replicates, _line) as watcher:
        resume = again or "lthfunc methods --out FILE"
        run = Execution(settings, context, folder, stop, watcher, COMPARED, meter, resume)
        records = compare(run, chosen, earlier, path, networks)
    rows = method_rows(records, context.steps)
    left = f"{100 * context.density:g} % of the weights"
    title = f"{settings.arch} on {settings.dataset}, {left}, {context.steps:,} steps"
    if plot:
        from lthfunc.reports.matplotlib_figures import printed, save as save_picture

        save_picture(printed(method_picture(rows, title)), plot)
    if json:
        put_json({"config": to_mapping(settings), "steps": context.steps, "results": records})
        return
    screen().print(f"{title} each", highlight=False)
    console = screen()
    console.print(method_table(rows, console.width))
    put_words("trainings: steps of all its trainings / those of one training", style="dim")
    put()
    put_words(most_accurate(rows))
    more = [] if settings.replicates > 1 else ["--replicates 3"]
    more += [] if plot else ["--plot methods.png"]
    found = [("lthfunc methods --list", "what each of the methods is")]
    if more:
        command = " ".join([shlex.join(["lthfunc", *sys.argv[1:]]), *more])
        seeds, picture = ("with three seeds" if settings.replicates == 1 else ""), ("" if plot else "as a picture")
        found.insert(0, (command, f"the same {' and '.join(filter(None, [seeds, picture]))}"))
    show_suggestions(found)


def _line(task: Any, item: dict[str, Any]) -> str:
    figures = f"test {metric_scale(item['metric']).text(item['test_accuracy'])}, {item['seconds']:.1f} s"
    return f"{item['method']} seed {item['seed']}: {figures}"
