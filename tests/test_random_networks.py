"""Networks drawn at random: every engine trains and evaluates them as the eager engine does, or refuses in one line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from network_engines import Tally, held
from random_kinds import KINDS
from random_networks import drawn, main

from lthfunc.sparse.kernels import build

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))

#: Networks, by so many tests; every so-manieth is evaluated by each engine and by programs, too.
NETWORKS, PARTS, INFERRED = 304, 16, 3
#: Of the tests, those that always run (one takes 18 s).
ALWAYS = 1
#: Shares of the networks that engines run at least; what they refuse has operations that they have no rule for.
LEAST = {
    "sparse": 0.7, "sparse inference": 0.6, "compact": 0.95, "compact inference": 0.95, "compile, interpreted": 0.95,
}  # fmt: skip
#: Networks of each other kind, by as many tests, and the share of them that the sparse engine runs at least.
OF_KIND, LEAST_OF_KIND = 48, {"tokens": 0.8, "recurrent": 0.8, "pixels": 0.7, "normalised": 0.8}
#: What the sparse engine is beside, in turn; tracing takes longest.
OTHERS = ("compact", "compile, interpreted")
#: Compiled by Inductor; they view as rows what it lays out channels last.
INDUCTOR = (306,)

tally = Tally()
of_kinds: dict[str, Tally] = {}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def parts(always: int) -> list[Any]:
    """Of which so many always run."""
    return [part if part < always else pytest.param(part, marks=pytest.mark.long) for part in range(PARTS)]


@pytest.mark.parametrize("part", parts(ALWAYS))
def test_every_engine_computes_what_the_eager_one_does(part: int) -> None:
    """Run more by ``python tests/random_networks.py --networks 5000 --seed 1``."""
    mine = Tally()
    for seed in range(part, NETWORKS, PARTS):
        network = drawn(seed)
        inferring = (seed // PARTS + part) % INFERRED == 0
        other = OTHERS[(seed // PARTS + part) // INFERRED % len(OTHERS)]
        faults = held(network, mine, ("sparse", other), inferring=inferring)
        assert not faults, "\n".join([*faults, str(network)])
    for engine, least in LEAST.items():
        margin = 0.2 * (INFERRED if "inference" in engine else 1)  # fewer networks vary more
        assert mine.share(engine) >= least - margin, mine
    tally.add(mine)
    if tally.networks == NETWORKS:
        assert all(tally.share(engine) >= least for engine, least in LEAST.items()), tally


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", parts(1))
def test_networks_of_other_kinds(kind: str, part: int) -> None:
    """Tokens, recurrent layers, what is done to pixels, normalised convolutions; one of a part is evaluated and takes
    two threads as well."""
    mine = Tally()
    for number, seed in enumerate(range(part, OF_KIND, PARTS)):
        network = drawn(seed, kind)
        faults = held(network, mine, ("sparse",) if number else ("sparse", OTHERS[part % 2]), inferring=not number)
        assert not faults, "\n".join([*faults, str(network)])
    of_kind = of_kinds.setdefault(kind, Tally())
    of_kind.add(mine)
    if of_kind.networks == OF_KIND:
        assert of_kind.share("sparse") >= LEAST_OF_KIND[kind], of_kind


@pytest.mark.long
def test_inductor_compiles_some_of_them_rightly() -> None:
    compiled = Tally()
    for seed in INDUCTOR:
        network = drawn(seed)
        faults = held(network, compiled, ("compile",))
        assert not faults, "\n".join([*faults, str(network)])
    assert compiled.ran["compile"] == compiled.networks


def test_the_command_runs_networks_and_tells_what_engines_refuse(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--networks", "2", "--seed", "0"]) == 0
    assert "2 networks, 0 faults" in capsys.readouterr().out
    assert main(["--show", "1"]) == 0
    assert "class Net(nn.Module):" in capsys.readouterr().out
