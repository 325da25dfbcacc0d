"""Who is told what of a training, and when: keepers, observers, ranks; and what is said where it fails."""

from __future__ import annotations

import math
import threading
from typing import Any

import pytest
import torch
from small import NET, data
from threads_as_ranks import Ranks
from torch import nn

import lthfunc as lf
from lthfunc.distributed.collectives import Collectives
from lthfunc.errors import UserError
from lthfunc.training.loop import fit, fit_together, take_steps
from lthfunc.training.results import Checkpointer, Fit, Stopped
from lthfunc.training.session import TrainingSession
from lthfunc.training.trainer import Trainer, make_trainer

CPU = torch.device("cpu")


def a_trainer(**changes: Any) -> Trainer:
    given = {"optimizer": lf.sgd(0.1), "batch_size": 5, **changes}
    return make_trainer(lf.from_module(NET), data(), **given)


class Told:
    """A checkpointer that records its calls."""

    def __init__(self, pause: int = 10**9, stop: int = 10**9) -> None:
        self.phases: list[tuple[str, int]] = []
        self.kept: list[list[Fit]] = []
        self.asked: list[int] = []
        self.step, self._stop = 0, stop
        self.checkpointer: Checkpointer[Fit] = Checkpointer(
            lambda fits: self.kept.append(list(fits)),
            lambda: self.step >= self._stop,
            self._due,
            lambda step: step - step % pause + pause,
            lambda phase, step: self.phases.append((phase, step)),
        )

    def _due(self, step: int) -> bool:
        self.asked.append(step)
        return step % 6 == 0

    def observe(self, step: int, points: Any) -> None:
        self.step = step


def test_a_keeper_is_told_each_phase_and_asked_at_each_pause() -> None:
    told, trainer = Told(pause=3), a_trainer()
    state = lf.init(lf.from_module(NET))
    (found,) = fit_together(trainer, [state], seeds=[1], until=10, eval_every=4, checkpointer=told.checkpointer)
    assert told.phases == [
        ("evaluation", 0), ("preparation", 0), ("training", 0), ("training", 3), ("evaluation", 4), ("training", 4),
        ("training", 6), ("evaluation", 8), ("training", 8), ("training", 9), ("evaluation", 10),
    ]  # fmt: skip
    assert told.asked == [3, 4, 6, 8, 9, 10]
    (kept,) = told.kept
    assert len(kept) == 1
    assert [point.step for point in kept[0].curve] == [0, 4]
    assert int(kept[0].state.step) == 6
    assert kept[0].since is not None
    assert kept[0].since.steps == 2
    _, mean = take_steps(trainer, take_steps(trainer, state, seed=1, until=4)[0], seed=1, until=6)
    assert kept[0].since.loss == pytest.approx(2 * mean)
    # Gone on with, to the same bits; told of what it begins with.
    again = Told()
    (rest,) = fit_together(
        trainer, [kept[0].state], seeds=[1], until=10, eval_every=4, checkpointer=again.checkpointer, so_far=kept
    )
    assert again.phases[:2] == [("preparation", 4), ("training", 6)]
    assert again.asked == [8, 10]
    assert lf.same_bits(rest.state, found.state)
    assert rest.curve[1:] == found.curve[1:]
    alone = fit(trainer, state, seed=1, until=10, eval_every=4)
    assert lf.same_bits(alone.state, found.state)


def test_who_asks_to_stop_is_kept_after_that_step() -> None:
    told, trainer = Told(stop=5), a_trainer()
    state = lf.init(lf.from_module(NET))
    with pytest.raises(Stopped):
        fit_together(
            trainer, [state], seeds=[1], until=10, eval_every=8, checkpointer=told.checkpointer, observe=told.observe
        )
    ((kept,),) = told.kept
    assert int(kept.state.step) == 5
    assert kept.since is not None
    assert kept.since.steps == 5
    assert told.asked == []  # whoever stops is kept in any case
    expected = take_steps(trainer, state, seed=1, until=5)[0]
    assert lf.same_bits(kept.state.params, expected.params)


def test_a_keeper_is_asked_to_stop_whether_or_not_anybody_observes() -> None:
    kept: list[Any] = []
    asked = iter([False] * 3 + [True] * 10)
    checkpointer: Checkpointer[Fit] = Checkpointer(kept.append, lambda: next(asked))
    with pytest.raises(Stopped):
        fit_together(
            a_trainer(), [lf.init(lf.from_module(NET))], seeds=[1], until=50, eval_every=40, checkpointer=checkpointer
        )
    ((fit_then,),) = kept
    assert 0 < int(fit_then.state.step) <= 4


def test_observers_hear_of_every_step_and_point() -> None:
    told: list[tuple[int, Any]] = []
    trainer, state = a_trainer(), lf.init(lf.from_module(NET))
    found = fit(trainer, state, seed=0, until=5, eval_every=2, observe=lambda step, point: told.append((step, point)))
    points = {point.step: point for point in found.curve}
    assert told == [
        (1, None),
        (2, None),
        (2, points[2]),
        (3, None),
        (4, None),
        (4, points[4]),
        (5, None),
        (5, points[5]),
    ]
    assert list(points) == [0, 2, 4, 5]
    assert math.isnan(points[0].train_loss)
    told.clear()
    _, mean = take_steps(trainer, state, seed=0, until=2, observe=lambda step, point: told.append((step, point)))
    assert told == [(1, None), (2, None)]
    assert mean == pytest.approx(points[2].train_loss)
    later = fit(trainer, found.state._replace(step=torch.tensor(3)), seed=0, until=9, eval_every=4)
    assert [point.step for point in later.curve] == [3, 4, 8, 9]
    several: list[Any] = []
    model = lf.from_module(NET)
    both = fit_together(
        trainer, [state, lf.init(model, 1)], seeds=[0, 1], until=2, eval_every=2,
        observe=lambda step, points: several.append((step, points)),
    )  # fmt: skip
    assert several == [(1, None), (2, None), (2, [each.curve[-1] for each in both])]
    with pytest.raises(UserError, match="fit_together: seeds must be one for each of 2 states, not 1"):
        fit_together(trainer, [state, state], seeds=[0], until=2, eval_every=2)
    for step in (5, 6):
        with pytest.raises(UserError, match=f"^steps: the state is already at step {step} of 5; rewind"):
            fit(trainer, state._replace(step=torch.tensor(step)), seed=0, until=5, eval_every=1)


def test_several_ranks_train_one_state() -> None:
    trainer, two = a_trainer(batch_size=4), Collectives(0, 2, lambda vector: vector)
    on_two = trainer._replace(work=trainer.work._replace(collectives=two))
    states = [lf.init(lf.from_module(NET), seed) for seed in range(2)]
    with pytest.raises(UserError, match=r"^ranks: several ranks train one state together, not several states"):
        TrainingSession(on_two, states, [0, 1], 5)
    with TrainingSession(on_two, states[:1], [0], 5):
        pass


def test_a_feeds_thread_ends_with_its_training() -> None:
    trainer = a_trainer()
    trainer = trainer._replace(data=trainer.data._replace(mapped=True))
    state = lf.init(lf.from_module(NET))

    def feeding() -> int:
        return sum(thread.name.startswith("lthfunc-feed") for thread in threading.enumerate())

    with TrainingSession(trainer, [state], [0], 9) as training:
        training.to(3)
        assert feeding() == 1
        states, since = training.now()
        training.restart(states, since)
        training.to(5)
        assert feeding() == 1
        parted = training.now()[0][0]
    assert feeding() == 0
    assert lf.same_bits(parted.params, take_steps(a_trainer(), state, seed=0, until=5)[0].params)


def test_what_cannot_be_trained_is_told_as_the_trainer_is_made() -> None:
    two = Collectives(0, 2, lambda vector: vector)
    with pytest.raises(UserError, match=r"^batch_size: 5 examples don't divide among 2 ranks"):
        a_trainer(collectives=two)
    with pytest.raises(UserError, match=r"^batch_size: invalid value 10000 "):
        a_trainer(batch_size=10_000)
    with pytest.raises(UserError, match=r"cannot take inputs of shape \(6,\)"):
        make_trainer(lf.from_module(nn.Sequential(nn.Linear(7, 3))), data(), optimizer=lf.sgd(0.1), batch_size=5)


def test_ranks_stop_once_one_is_asked_to() -> None:
    trainer, state = a_trainer(batch_size=4), lf.init(lf.from_module(NET))

    def work(rank: int, collectives: Collectives) -> tuple[bool, bool]:
        checkpointer: Checkpointer[Fit] = Checkpointer(lambda fits: None, lambda: rank == 1)
        with TrainingSession(
            trainer._replace(work=trainer.work._replace(collectives=collectives)), [state], [0], 5
        ) as training:
            return training.asked(checkpointer), training.asked(Checkpointer(lambda fits: None))

    assert Ranks(2).run(work) == [(True, False)] * 2
    with TrainingSession(trainer, [state], [0], 5) as training:
        assert training.asked(Checkpointer(lambda fits: None, lambda: True)) is True
        assert training.asked(Checkpointer(lambda fits: None)) is False
