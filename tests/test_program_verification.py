"""Programs of the sparse engine whose numbers nobody should believe: each is refused, or runs inside its memory.

    python tests/test_program_verification.py --programs 20000 --seed 1

does many; under the address sanitizer (docs/explanation/sparse-engine.md) any access outside a memory ends the process.
"""

from __future__ import annotations

import argparse
import functools
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from guarded_memory import Room
from test_decoding import Gated, made
from test_decoding_recurrent import Remembering
from test_token_lanes_masks import FORMS, Padded
from torch import Tensor, nn
from verified_networks import SHAPE, Attended, Held, Mixed, Plain

import lthfunc as lf
from lthfunc.models.transformers import CharTransformer
from lthfunc.sparse import bands, rolling
from lthfunc.sparse.capture import captured
from lthfunc.sparse.kernels import build
from lthfunc.sparse.kernels.instructions import COLUMNS, OPCODES, column_of
from lthfunc.sparse.lowerings import dense
from lthfunc.sparse.machine_code import MachineCode
from lthfunc.sparse.partition import Input, partition
from lthfunc.sparse.program import Epilogue, Program, Stored, builder_for, program_of
from lthfunc.sparse.regions import region_program
from lthfunc.sparse.tile_buffers import LANES
from lthfunc.sparse.token_lanes import lanes_program, training_on_lanes
from lthfunc.training.accumulation import AccumulateNumbers
from lthfunc.training.averaging import EMANumbers
from lthfunc.training.clipping import ClipNormNumbers, ClipValueNumbers
from lthfunc.training.optimizers import AdamNumbers, SGDNumbers

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))

#: Tokens of a sequence, and how many there are.
TOKENS, VOCABULARY = 7, 9


class Parts(NamedTuple):
    """A program as it is handed to the machine. tokens: that it reads, 0 for images. moving, states, places: of a
    sequence that it reads token by token."""

    rows: Tensor
    lists: Tensor
    constants: Tensor
    vectors: int
    local: int
    values: int
    trained: int
    batch: int
    tokens: int = 0
    moving: Tensor = torch.zeros(0, 3, dtype=torch.int64)
    states: Tensor = torch.zeros(0, 2, dtype=torch.int64)
    places: int = 1

    def made(self) -> int:
        number: int = torch.ops.lthfunc.make_program(
            self.rows, self.lists, self.vectors, self.local, self.values, self.trained, len(self.constants), self.batch
        )
        return number


@functools.cache
def programs() -> tuple[Parts, ...]:
    """Programs that have all kinds of instructions: of lists, of dense products, with and without gradients."""
    build.load_kernels()
    clip = ClipValueNumbers(0.1), ClipNormNumbers(0.2)
    adam = AccumulateNumbers(2), *clip, AdamNumbers((0.9, 0.999), 1e-8, 0.1, False, lf.is_matrix), EMANumbers(0.9, True)
    epilogues = [
        (True, Epilogue(update=(SGDNumbers(0.9, True, 0.0),))), (True, Epilogue(update=adam)), (True, Epilogue(None)),
        (False, Epilogue(None, gradients=False)),
    ]  # fmt: skip
    found = []
    cases: tuple[tuple[nn.Module, float, int], ...] = (
        (Plain(), math.inf, 20), (Plain(), 0.5, 70), (Mixed(), 0.5, 20), (Mixed(), 0.5, 1), (Attended(), 0.5, 20),
        (Held(), math.inf, 20), (Held(bias=False), math.inf, 20),
    )  # fmt: skip
    for module, share, batch in cases:
        tokens, halves = isinstance(module, Attended), isinstance(module, Held)
        stored = Stored((TOKENS,), torch.int64) if tokens else Stored(SHAPE, torch.float32)
        model = lf.from_module(module, tokens=tokens)
        state = lf.init(model, seed=0)
        masks = {name: torch.rand(mask.shape) < 0.9 for name, mask in state.masks.items()}
        for training, epilogue in epilogues:
            with pytest.MonkeyPatch.context() as patch:
                for name in ("GRADIENTS_FROM", "PRODUCTS_FROM", "CONVOLUTIONS_FROM"):
                    patch.setattr(dense, name, share)
                patch.setattr(rolling, "have_avx512", lambda: True)
                if halves:
                    patch.setattr(bands, "_BAND_BYTES", 1)
                program = program_of(
                    captured(model, stored.shape, training=training), state.params, state.buffers, masks, batch=batch,
                    stored=stored, epilogue=epilogue, builder=builder_for("bf16" if halves else "fp32"),
                )  # fmt: skip
            found.append(parts_of(program.code)._replace(tokens=TOKENS * tokens))
            found += [parts_of(program.whole_layers().code)._replace(tokens=TOKENS * tokens)] if training else []
        if tokens or halves:
            continue
        graph = captured(model, SHAPE, training=True)
        whole = partition(graph, (Input(batched=True, needs=True),), dict, state.buffers, gradients=True)
        kept = {name: mask.flatten().nonzero().flatten() for name, mask in masks.items()}
        region = region_program(graph, whole.parts[0], whole, kept, state.buffers, dict, batch=batch, gradients=True)
        found.append(parts_of(region.code))
    return (*found, *decoding_programs(), *programs_on_lanes_of_tokens())


def programs_on_lanes_of_tokens() -> list[Parts]:
    """For two sequences of two tiles, in inference and in training, with dropout and under a mask."""
    length, found = TOKENS + LANES, list[Program]()
    tokens, epilogue = torch.zeros(2, length, dtype=torch.int64), Epilogue(update=(SGDNumbers(0.9, True, 0.0),))
    for model in (
        lf.models.char_transformer((length,), VOCABULARY, layers=1, heads=2, width=8, dropout=0.1),
        lf.from_module(Padded(FORMS["of queries, too"], 2, 4, words=VOCABULARY), tokens=True, warn=False),
    ):
        state = lf.prune(density=0.5)(lf.init(model))
        made = lanes_program(model, state.params, state.buffers, state.masks, tokens)
        lowered = training_on_lanes(model, state, 2, length, epilogue)
        assert made is not None
        assert lowered is not None
        found += [made.workspace.program, lowered.program]
    return [parts_of(each.code)._replace(tokens=1) for each in found]


@functools.cache
def decoding_programs() -> tuple[Parts, ...]:
    """Programs for one token of a sequence, on kernels of their own and on tiles."""
    sizes: dict[str, Any] = {"layers": 1, "heads": 2, "width": 8}
    nets: tuple[nn.Module, ...] = (
        CharTransformer((TOKENS,), VOCABULARY, **sizes), Gated(TOKENS, vocabulary=VOCABULARY),
        nn.Sequential(CharTransformer((TOKENS,), VOCABULARY, **sizes), nn.LogSoftmax(-1)), Remembering(),
    )  # fmt: skip
    found = [made(net, TOKENS, 0.5)[0] for net in nets]
    assert [torch.ops.lthfunc.runs_single(each._number) for each in found] == [True, True, False, True]
    return tuple(
        parts_of(each._code)._replace(tokens=1, moving=each._moving, states=each._states, places=TOKENS)
        for each in found
    )


def parts_of(code: MachineCode) -> Parts:
    return Parts(code.rows, code.lists, code.constants, code.vectors, code.local, code.values, code.trained, code.batch)


def mutated(parts: Parts, rng: random.Random) -> Parts:
    """One to three numbers changed: of instructions, of lists, of columns that move, or how large the memory is."""
    rows, lists, moving = parts.rows.clone(), parts.lists.clone(), parts.moving.clone()
    states = parts.states.clone()
    sizes: dict[str, Any] = {}
    for _ in range(rng.randint(1, 3)):
        where = rng.random()
        if where < 0.1:
            name = rng.choice(("vectors", "local", "values", "trained", "batch"))
            sizes[name] = rng.choice((0, 1, rng.randint(0, getattr(parts, name)), getattr(parts, name) + 16))
        elif parts.places > 1 and where < 0.3:
            sizes["places"] = rng.choice((parts.places, number(rng, parts.places)))
            moved: list[list[int]] = moving.tolist()
            one = [number(rng, each) if rng.random() < 0.3 else each for each in rng.choice(moved)]
            moving = torch.tensor([*moved, one][rng.randrange(2) :])  # one more, perhaps moved twice, or instead
        elif len(states) and where < 0.33:
            states[rng.randrange(len(states)), rng.randrange(2)] = number(rng, int(rng.choice(states.flatten())))
        elif where < 0.4:
            edge = torch.iinfo(lists.dtype)
            changed = number(rng, int(rng.choice(lists)))  # of a list that may have been changed to its edge before
            lists[rng.randrange(len(lists))] = max(edge.min, min(edge.max, changed))
        else:
            row = rng.randrange(len(rows))
            columns = len(COLUMNS[list(OPCODES)[int(parts.rows[row, 0])]])
            rows[row, rng.randrange(4 + columns)] = number(rng, int(rng.choice(rows.flatten())))
    return parts._replace(rows=rows, lists=lists, moving=moving, states=states, **sizes)


def number(rng: random.Random, other: int) -> int:
    """Something that a column might hold and should not, or another one's number."""
    small = rng.randint(-3, 70)
    return rng.choice((small, small, other, other + 1, other - 1, 64 * small, rng.choice((-(2**31), 2**31 - 1))))


def layer_size(parts: Parts) -> int:
    """How many weights' gradients the first instruction takes, if it takes a whole layer's; not beyond a million."""
    name, rows = list(OPCODES)[int(parts.rows[0, 0])], int(parts.rows[0, 2])
    column = {"largest_gradients": "columns", "largest_embedding_gradients": "channels"}.get(name)
    return max(0, min(10**6, rows * (int(parts.rows[0, column_of(name, column)]) if column else 1)))


def outcome(parts: Parts, rng: random.Random) -> str:
    """ "refused" or "ran". Raises AssertionError where something was written outside."""
    try:
        program = parts.made()
    except ValueError as error:
        if "lthfunc: " not in str(error):
            raise
        return "refused"
    examples, threads, share = rng.randint(1, max(1, parts.batch)), rng.randint(1, 2), rng.randint(1, 3)
    values, trained, tiles = parts.values, parts.trained, -(-examples // LANES)
    rooms = {name: Room(count) for name, count in (
        ("activations", LANES * parts.vectors), ("values", values), ("gradients", trained),
        ("partials", trained * tiles), ("constants", len(parts.constants)), ("kept", 4 * trained),
        ("outputs", 3 * examples), ("input_gradients", math.prod(SHAPE) * examples),
        ("sums", layer_size(parts)),
    )}  # fmt: skip
    rooms["constants"].inside.copy_(parts.constants)
    held = {name: room.inside for name, room in rooms.items()}
    clock, totals = Room(6, 0.9, torch.float64), Room(2, 0.0, torch.float64)
    x = torch.rand(1, share * examples, *SHAPE)
    if parts.tokens:
        generator = torch.Generator().manual_seed(examples)
        x = torch.randint(0, VOCABULARY, (1, share * examples, parts.tokens), generator=generator)
    draws = torch.tensor([rng.random() for _ in range(rng.randint(1, 19))], dtype=torch.float64)
    known = rng.choice((0, 0, 0, 1))  # how far tokens may lie beside those that there are
    sequence = torch.tensor([rng.randint(-known, VOCABULARY - 1 + known) for _ in range(rng.randint(1, TOKENS))])
    y, largest, one = torch.zeros(1, share * examples, dtype=torch.int64), torch.empty(3).long(), x[0, :examples]
    machine, every, update = torch.ops.lthfunc, (program, 0, len(parts.rows)), rng.randint(0, len(parts.rows))
    memory = [held[name] for name in ("activations", "values", "gradients", "partials", "constants")]
    calls: tuple[Callable[[], object], ...] = (
        lambda: machine.run(*every, *memory, held["kept"], clock.inside, totals.inside, torch.tensor([0.01]), x, y,
                            held["outputs"], examples, share, update, 1, 0, 7),
        lambda: machine.run_half(*every, *memory, one, held["outputs"], held["input_gradients"], examples, 7),
        lambda: machine.infer(program, held["activations"], held["values"], held["constants"], one, True),
        lambda: machine.decode(program, parts.moving, parts.states, parts.places, held["activations"], held["values"],
                               held["constants"], sequence),
        lambda: machine.generate(program, parts.moving, parts.states, parts.places, held["activations"], held["values"],
                                 held["constants"], torch.zeros(20, dtype=torch.int64), draws, 1.0, 3),
        lambda: machine.largest_gradients(program, 0, held["activations"], examples, largest[:0], largest),
        lambda: machine.add_layer_gradients(program, 0, held["activations"], examples, held["sums"]),
    )  # fmt: skip
    torch.set_num_threads(threads)
    ran = 0
    for call in calls:  # each refuses programs that are for another one
        try:
            call()
            ran += 1
        except (ValueError, RuntimeError, IndexError) as error:
            told = r"lthfunc: |token \S+ is none of|the network's outputs are not numbers"
            if not re.search(told, str(error)):
                raise
    torch.set_num_threads(1)
    torch.ops.lthfunc.free_program(program)
    assert all(room.is_whole() for room in (*rooms.values(), clock, totals)), "written outside"
    return "ran" if ran else "refused as it ran"


def tried(count: int, seed: int, programs: Callable[[], Sequence[Parts]] = programs) -> Counter[str]:
    """What became of so many programs."""
    rng = random.Random(seed)
    return Counter(outcome(mutated(rng.choice(programs()), rng), rng) for _ in range(count))


def test_all_kinds_of_instructions_are_tried() -> None:
    found = {int(opcode) for parts in programs() for opcode in parts.rows[:, 0]}
    assert {name for name, opcode in OPCODES.items() if opcode not in found} == set()
    assert {outcome(parts, random.Random(0)) for parts in programs()} == {"ran"}


def test_what_is_not_a_program_is_refused_or_stays_inside_its_memory() -> None:
    found = tried(600, 0)
    assert found["refused"] > 100
    assert found["ran"] > 50


def test_sequences_of_what_is_not_a_program_stay_inside_their_memory() -> None:
    """Token by token, with columns that move otherwise, in sequences of another length."""
    found = tried(400, 0, decoding_programs)
    assert found["refused"] > 50
    assert found["ran"] > 50


def test_a_program_has_no_more_outputs_than_it_stores() -> None:
    """Otherwise one number could ask for gigabytes, or for what nothing has written."""
    program = decoding_programs()[0]
    (at,) = (program.rows[:, 0] == OPCODES["store_outputs"]).nonzero().flatten().tolist()
    rows = program.rows.clone()
    rows[at, column_of("store_outputs", "first")] = 1
    with pytest.raises(ValueError, match="lthfunc: outputs that no instruction stores"):
        program._replace(rows=rows).made()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(dict(tried(given.programs, given.seed)))


if __name__ == "__main__":
    main()
