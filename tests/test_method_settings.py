"""The setting that methods are given, and which of them mean something in it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from small import settings
from test_methods_by_parts import INITIAL, MODEL, STEPS, a_trainer

import lthfunc as lf
from lthfunc.catalog.courses import COURSES
from lthfunc.errors import UserError
from lthfunc.experiments import plan as planning
from lthfunc.experiments.courses import iterative, prepare
from lthfunc.experiments.courses.context import MethodContext
from lthfunc.experiments.courses.iterative import why_not_tuned
from lthfunc.experiments.courses.prepare import check_methods, method_context, methods_for
from lthfunc.training.optimizers import AdamNumbers, SGDNumbers

# ---- the setting ----


@pytest.fixture(scope="module")
def setting() -> MethodContext:
    return MethodContext(
        MODEL, a_trainer(), a_trainer, None, steps=STEPS, eval_every=6, rounds=2, density=0.4, device="cpu",
        schedule=lf.stepwise(0.2, (12,), 0.5), cycles=2,
    )  # fmt: skip


def test_which_methods_mean_something(setting: MethodContext) -> None:
    check_methods(settings(density=0.5), ("imp", "snip"))
    with pytest.raises(UserError, match=r"^--method: unknown name 'impp'; did you mean 'imp'"):
        check_methods(settings(density=0.5), ("snip", "impp"))
    with pytest.raises(UserError, match=r"^--density: is required"):
        check_methods(settings(), ("imp",))
    every = tuple(COURSES)
    assert every == tuple(COURSES)
    assert {*INITIAL, "imp-tuned", "edge-popup"} < set(every)
    assert why_not_tuned(setting) is None
    assert methods_for(setting, ()) == (every, None)
    assert methods_for(setting, ("imp-tuned",)) == (("imp-tuned",), None)
    assert why_not_tuned(setting._replace(schedule=None)) is None
    for schedule, words in (
        (lf.constant(0.1), "imp-tuned needs a decreasing --schedule"),
        (torch.tensor([0.1, 0.2]), "imp-tuned needs a decreasing --schedule"),
        (lf.cosine(0.1, STEPS), "imp-tuned would train at the schedule's last rate, which is about 0"),
    ):
        other = setting._replace(schedule=schedule)
        assert str(why_not_tuned(other)).startswith(words)
        some, note = methods_for(other, ())
        assert some == tuple(name for name in every if name != "imp-tuned")
        assert str(note).startswith(f"imp-tuned is left out: {words}")
        assert methods_for(other, ("imp", "snip")) == (("imp", "snip"), None)
        with pytest.raises(UserError, match=f"^--method: {words}"):
            methods_for(other, ("imp", "imp-tuned"))
        with pytest.raises(UserError, match=f"^{words}"):
            iterative.imp_tuned(other, 0)
    late = setting._replace(schedule=lf.cosine(0.1, 3 * STEPS))  # at 0 only after both
    assert why_not_tuned(late) is None


def test_a_setting_is_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    given = settings(
        dataset="digits", density=0.25, rounds=3, steps=12, eval_every=5, momentum=0.5, weight_decay=0.125, lr=0.5,
        schedule="step", milestone=(4,), batch_size=40, loss="auto", metric="top-2", on_nonfinite="skip",
        synflow_rounds=7, engine="eager", threads=3, augment="flip-crop",
    )  # fmt: skip
    config, found = method_context(replace(given, cycles=2))
    assert (config.engine, config.threads) == ("eager", 3)
    assert (found.steps, found.eval_every, found.rounds, found.density) == (12, 5, 3, 0.25)
    assert (found.device, found.synflow_rounds, found.shape) == ("cpu", 7, (1, 8, 8))
    assert found.schedule is not None
    assert found.schedule.tolist() == lf.stepwise(0.5, (4,)).tolist()
    other = found.trainer_of(found.model, lf.adam(0.1))
    assert found.cyclic is not None
    for trainer in (found.trainer, found.cyclic, other):
        assert (trainer.batch_size, trainer.on_nonfinite, trainer.engine.name) == (40, "skip", "eager")
        assert (trainer.work.precision, trainer.work.loss) == ("fp32", lf.cross_entropy)
        assert float(trainer.work.metric(torch.tensor([[3.0, 2, 1]]), torch.tensor([1]))) == 1.0
    assert other.work.optimizer.numbers == AdamNumbers((0.9, 0.999), 1e-8, 0.0, False)
    assert found.cyclic.work.optimizer.numbers == found.trainer.work.optimizer.numbers == SGDNumbers(0.5, False, 0.125)
    params = lf.init(found.model).params
    assert torch.equal(found.cyclic.work.optimizer.init(params).schedule, lf.cyclic(0.5, 12, 2).float())
    assert torch.equal(found.trainer.work.optimizer.init(params).schedule, lf.stepwise(0.5, (4,)).float())
    plain = lf.init(found.model)
    moved = [lf.take_steps(each, plain, seed=0, until=1)[0].params for each in (found.trainer, found.trainer_of(
        found.model, lf.sgd(lf.stepwise(0.5, (4,)), 0.5, weight_decay=0.125)))]  # fmt: skip
    assert lf.same_bits(*moved)  # its images shifted and mirrored alike
    unmoved = method_context(settings(**{**vars(given), "augment": "none"}))[1]
    assert not lf.same_bits(lf.take_steps(unmoved.trainer, plain, seed=0, until=1)[0].params, moved[0])
    half = method_context(settings(density=0.25, steps=4, precision="bf16", engine="eager", schedule="constant"))[1]
    assert half.trainer_of(half.model, lf.sgd(0.1)).work.precision == half.trainer.work.precision == "bf16"
    # Where the sparse engine cannot be, the plain one; other mistakes are told.
    seen: list[str] = []

    def cannot(config: Any) -> Any:
        seen.append(config.engine)
        if config.engine == "sparse/eager":
            raise UserError("--engine: invalid value 'sparse/eager'")
        return original(config)

    original = planning.prepare
    monkeypatch.setattr(prepare, "prepare", cannot)
    config, found = method_context(settings(density=0.25, steps=4))
    assert (seen, config.engine, config.threads, found.synflow_rounds) == (["sparse/eager", "eager"], "eager", 1, 100)

    def wrong(config: Any) -> Any:
        seen.append(config.engine)
        raise UserError(words)

    monkeypatch.setattr(prepare, "prepare", wrong)
    for engine, words, tried in (
        ("auto", "--lr: bad", ["sparse/eager"]), ("auto", "--engine: bad", ["sparse/eager", "eager"]),
        ("compile", "--engine: bad", ["compile"]),
    ):  # fmt: skip
        seen.clear()
        with pytest.raises(UserError, match=f"^{words}$"):
            method_context(settings(density=0.25, engine=engine))
        assert seen == tried
