"""The compiled engine part by part, its compiler left away."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import noted
from small import NET, data, state_of
from torch import nn

import lthfunc as lf
from lthfunc.distributed.collectives import SINGLE_RANK, Collectives
from lthfunc.errors import UserError
from lthfunc.training.engines import compiled as compiled_engine, reused_memory
from lthfunc.training.engines.cuda_graphs import Launcher
from lthfunc.training.engines.eager import eager
from lthfunc.training.engines.interface import Work
from lthfunc.training.losses import cross_entropy
from lthfunc.training.prefetch import Prefetcher
from lthfunc.trees.ops import clone
from lthfunc.trees.types import Scale, Split

NHWC = torch.channels_last


# ---- the compiled engine, its compiler left away ----


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[int, ...]]]:
    """The shapes that each program is made for; a program is the function itself."""
    made: list[list[tuple[int, ...]]] = []

    def plain(function: Any, example: Any, name: str) -> Any:
        made.append([tuple(leaf.shape) for leaf in example])
        return function

    monkeypatch.setattr(compiled_engine, "compiled", plain)
    monkeypatch.setattr(compiled_engine, "_check_torch", lambda device: None)  # nothing is compiled
    return made


def _work(collectives: Collectives = SINGLE_RANK) -> Work:
    return Work(lf.from_module(NET), cross_entropy, lf.sgd(0.1, 0.5), None, None, "fp32", collectives=collectives)


@pytest.mark.parametrize("width", [1, 2])
def test_programs_run_in_their_own_memory_to_the_eager_steps_bits(programs: Any, width: int) -> None:
    work, numbers = _work(), data()
    states = [lf.with_optimizer(state_of(seed)[1], work.optimizer) for seed in range(width)]
    before = [clone(state) for state in states]
    found = []
    for make in (compiled_engine.compile_engine, eager):
        engine = make(work)
        for _ in range(2):  # the second time nothing is made
            prefetcher = Prefetcher(numbers.train, 4, range(width), torch.device("cpu"))
            running = engine.begin(states, list(range(width)), prefetcher)
            assert running.draws
            prefetcher.fill(0, 3, 6)
            assert running.take(3, None) == 3
            prefetcher.fill(3, 6, 6)
            assert running.take(3, lambda steps: True) == 1
            losses, after = running.losses(), running.states()
            running.count_from([10.0] * width)
            assert running.losses() == [10.0] * width
            prefetcher.fill(4, 5, 6)
            running.take(1, None)
            assert [int(state.step) for state in after] == [4] * width  # nobody else's
        split = Split(numbers.train.x.repeat(20, 1), numbers.train.y.repeat(20))  # 600: the last 100 apart
        found.append((losses, after, engine.measure(after, split)))
    assert len(programs) == 2
    assert programs[0][-2:] == [(4, 6), (4,)] if width == 1 else [(2, 4, 6), (2, 4)]
    assert programs[1][-2:] == [(500 // width, 6), (500 // width,)]
    assert found[0][0] == pytest.approx(found[1][0])
    for mine, theirs in zip(found[0][1], found[1][1], strict=True):
        assert lf.same_bits(mine, theirs)
    for quality, expected in zip(found[0][2], found[1][2], strict=True):
        assert quality == pytest.approx(expected)
    assert lf.same_bits(states, before)


def test_images_lie_channels_last_in_a_loop_and_as_init_has_them_outside(programs: Any) -> None:
    net = nn.Sequential(nn.Unflatten(1, (2, 1, 3)), nn.Conv2d(2, 4, (1, 2)), nn.Flatten(), nn.Linear(8, 3))
    model, numbers = lf.from_module(net), data()
    work = _work()._replace(model=model)
    state = lf.with_optimizer(lf.init(model), work.optimizer)
    running: Any = compiled_engine.compile_engine(work).begin(
        [state], [0], Prefetcher(numbers.train, 4, [0], torch.device("cpu"))
    )
    assert any(leaf.ndim == 4 and not leaf.is_contiguous() for leaf in running._leaves)
    (found,) = running.states()
    for tree in (found.params, found.masks, found.opt.velocity):
        assert all(leaf.is_contiguous() for leaf in tree.values())


@pytest.mark.parametrize("width", [1, 2])
def test_types_are_looked_at_before_a_trace_that_hides_them(
    programs: Any, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    look = compiled_engine._check_types

    def looked(work: Work, network: Any, shape: Any, dtype: Any) -> None:
        seen.append((tuple(shape), dtype))
        look(work, network, shape, dtype)

    monkeypatch.setattr(compiled_engine, "_check_types", looked)
    work, numbers = _work(), data()
    engine = compiled_engine.compile_engine(work)
    states = [lf.with_optimizer(state_of(seed)[1], work.optimizer) for seed in range(width)]
    engine.begin(states, list(range(width)), Prefetcher(numbers.train, 4, range(width), torch.device("cpu")))
    engine.measure(states, numbers.val)
    assert seen == [((4, 6), torch.float32), ((2, 6), torch.float32)]

    def alone(dtype: torch.dtype, scale: Any = None) -> None:
        look(work._replace(scale=scale), states[0], (2, 6), dtype)

    for fine in (torch.float32, torch.uint8, torch.int64):
        alone(fine)
    alone(torch.float64, Scale(1, (0.0,), (1.0,)))  # which makes float32 of it
    with pytest.raises(UserError):
        alone(torch.float64)


@pytest.mark.parametrize("graphs", [True, False])
def test_loops_share_pools_and_capture_where_they_may(
    programs: Any, graphs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    def launcher(program: Any, slots: Any, pools: Any, *, capture: bool = True) -> Launcher:
        made.append((pools, capture, len(slots)))
        return Launcher(program, slots, pools, capture=capture)

    monkeypatch.setattr(compiled_engine, "Launcher", launcher)
    engine, numbers = compiled_engine.compile_engine(_work(), graphs=graphs), data()
    state = lf.with_optimizer(state_of()[1], lf.sgd(0.1, 0.5))
    for _ in range(2):
        prefetcher = Prefetcher(numbers.train, 4, [0], torch.device("cpu"))
        engine.begin([state], [0], prefetcher)
    (pools, *first), second = made
    assert first == [graphs, prefetcher.slots]
    assert second[0] is pools


def test_a_loop_goes_on_in_memory_that_was_left(programs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Reusable(reused_memory.Reusable[Any]):
        """Of which the first is the loops'."""

        fit: Any = None

        def take(self, fit: Any) -> Any:
            self.fit = fit
            return super().take(fit)

    made: list[Reusable] = []
    monkeypatch.setattr(compiled_engine, "Reusable", lambda: noted(made, Reusable()))
    engine, numbers = compiled_engine.compile_engine(_work()), data()
    first, second = (lf.with_optimizer(state_of(seed)[1], lf.sgd(0.1, 0.5)) for seed in (3, 4))
    prefetcher = Prefetcher(numbers.train, 4, [3], torch.device("cpu"))
    running: Any = engine.begin([first], [3], prefetcher)
    prefetcher.fill(0, 2, 4)
    running.take(2, None)
    made[0].leave(made[0].fit, compiled_engine._Memory(running._leaves, prefetcher.slotted, running._launcher))
    found = []
    for kind in (engine, eager(_work())):
        prefetcher = Prefetcher(numbers.train, 4, [4], torch.device("cpu"))
        running = kind.begin([second], [4], prefetcher)
        prefetcher.fill(0, 3, 4)
        running.take(3, None)
        found.append(running.states()[0])
    assert len(programs) == 1
    assert lf.same_bits(*found)
    made[0].leave("other", "memory")
    engine.forget()
    assert made[0]._idle == made[1]._idle == []


def test_ranks_draw_outside_of_torch_by_their_number() -> None:
    state = lf.with_optimizer(state_of()[1], lf.sgd(0.1, 0.5))
    for rank, expected in ((0, []), (1, [1]), (2, [2])):
        collectives = Collectives(rank, 3, lambda vector: vector)
        prefetcher = Prefetcher(data().train, 6, [0], torch.device("cpu"), collectives=collectives)
        running: Any = eager(_work(collectives)).begin([state], [0], prefetcher)
        assert running._rank == expected


def test_one_program_serves_gradients_of_any_number_of_survivors(programs: Any) -> None:
    two = Collectives(0, 2, lambda vector: 2 * vector)
    engine = compiled_engine.compile_engine(_work(two))
    model, numbers = lf.from_module(NET), data()
    for density in (1.0, 0.6, 0.2):
        state = lf.with_optimizer(lf.prune(density=density)(lf.init(model)), lf.sgd(0.1, 0.5))
        engine.begin([state], [0], Prefetcher(numbers.train, 8, [0], torch.device("cpu"), collectives=two))
    assert len(programs) == 1
    engine.begin([state], [0], Prefetcher(numbers.train, 4, [0], torch.device("cpu"), collectives=two))
    assert len(programs) == 2
    alone = compiled_engine.compile_engine(_work())
    alone.begin([state], [0], Prefetcher(numbers.train, 8, [0], torch.device("cpu")))
    assert len(programs) == 3
