"""Few sequences of tokens on the sparse engine, whose lanes are then tokens: inference, or training.

    lthfunc benchmark sequences --density 0.1
    lthfunc benchmark sequences --density 0.1 --training

Sixteen sequences fill lanes of examples, and fewer took as long there. So the time of sixteen is what fewer cost with
lanes of examples. Times are the processor's, of one thread, in turns. Lower bound: the survivors' FLOPs at peak rate,
of which a training step has three times as many.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

import lthfunc as lf
from lthfunc.errors import invalid
from lthfunc.sparse.tile_buffers import LANES

from .floors import PEAK
from .loops import user_loop
from .records import Options, Record, checked_densities, chosen, header, record, saying, script, write

#: Of records: inference, and training.
PROGRAM, TRAINING = "lf.sparse_program", "sparse, training"
_DENSITIES, _SEQUENCES, _VOCABULARY = (1.0, 0.1, 0.02), (1, 2, 4, 8, LANES), 65

#: Rows and columns of the product that the peak rate is taken of.
_SIDE = 1024


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write. Raises UserError for what cannot be measured."""
    options = Options("sequences", __doc__)
    options.densities(", ".join(f"{each:g}" for each in _DENSITIES))
    options.add("--width", type=int, default=128, help="of char-transformer (128)")
    options.add("--layers", type=int, default=4, help="of char-transformer (4)")
    options.add("--length", type=int, default=64, help="tokens of a sequence (64)")
    options.add("--training", action="store_true", help="steps of training, rather than inference")
    options.add("--repeats", type=int, default=9, help="timings of each (9)")
    options.json()
    run(**options.parsed(arguments))


def run(
    *, densities: Sequence[float] | None, width: int, layers: int, length: int, training: bool, repeats: int,
    json: str | None,
) -> list[Record]:  # fmt: skip
    """Measure, print, and write JSON where asked to."""
    kept = checked_densities(densities, _DENSITIES)
    for option, value, least in (("width", width, 4), ("layers", layers, 1), ("length", length, 2),
                                 ("repeats", repeats, 1)):  # fmt: skip
        if value < least:
            raise invalid(f"--{option}", value, f"a whole number of at least {least}")
    chosen((), (), (), 1)
    torch.set_num_threads(1)
    model = lf.models.char_transformer((length,), _VOCABULARY, width=width, layers=layers)
    dense, peak, records = lf.init(model), _peak(repeats), list[Record]()
    engine = TRAINING if training else PROGRAM
    for density in kept:
        state = lf.prune(density=density, score=lf.random_scores(0))(dense)
        made = _steps(model, state, length) if training else _calls(model, state, length)
        seconds = _seconds(made, repeats, saying(f"{model.name}, density {density:g}"))
        about = {"network": model.name, "density": density, "unit": "sequences/s"}
        for count, each in seconds.items():
            records.append(record([count / one for one in each], engine=engine, sequences=count, **about))
        survivors = sum(int(mask.sum()) for name, mask in state.masks.items() if name != "characters.weight")
        bound = peak / ((6 if training else 2) * survivors * length)
        records.append(record([bound], engine=PEAK, sequences=LANES, **about))
        _tell(density, seconds, bound)
    if json is not None:
        write(json, header("sequences", "lthfunc benchmark sequences", "cpu", 1), records)
    return records


def _text(length: int) -> lf.Dataset:
    """Sequences of tokens, and the token that follows each."""
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, _VOCABULARY, (8 * LANES, length + 1), generator=draw)
    pair = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    return lf.data.from_tensors("text", pair, pair, val=LANES)


def _calls(model: lf.Model, state: lf.TrainState, length: int) -> dict[int, Callable[[], object]]:
    """Inference of as many sequences."""
    program, tokens = lf.sparse_program(model, state), _text(length).train.x
    return {count: partial(program, tokens[:count]) for count in _SEQUENCES}


def _steps(model: lf.Model, state: lf.TrainState, length: int) -> dict[int, Callable[[], object]]:
    """A step of training on as many sequences, in the loop that users run."""
    data, optimizer = _text(length), lf.adam(1e-3)
    trainers = {
        count: lf.make_trainer(
            model, data, optimizer=optimizer, loss=lf.next_token, batch_size=count, engine=lf.sparse_engine
        )
        for count in _SEQUENCES
    }
    return {count: partial(user_loop(trainer, state), 1) for count, trainer in trainers.items()}


def _seconds(
    made: dict[int, Callable[[], object]], repeats: int, say: Callable[[str], None]
) -> dict[int, list[float]]:  # fmt: skip
    """The processor's, of as many sequences, in turns."""
    found: dict[int, list[float]] = {count: [] for count in made}
    for call in made.values():
        call()
    for turn in range(repeats):
        for count, each in found.items():
            begun = time.process_time()
            made[count]()
            each.append(time.process_time() - begun)
        say(f"turn {turn + 1} of {repeats}")
    return found


def _peak(repeats: int) -> float:
    """FLOP/s of a large product, by the processor's time as well."""
    factor, best = torch.ones(_SIDE, _SIDE), math.inf
    for _ in range(repeats):
        begun = time.process_time()
        factor @ factor
        best = min(best, time.process_time() - begun)
    return 2 * _SIDE**3 / best


def _tell(density: float, seconds: dict[int, list[float]], bound: float) -> None:
    medians = {count: statistics.median(each) for count, each in seconds.items()}
    for count, each in medians.items():
        print(f"density {density:<5g} {count:3d} sequences {1e3 * each:8.2f} ms {count / each:9.1f} sequences/s "
              f"{medians[LANES] / each:6.2f} × as fast as with lanes of examples")  # fmt: skip
    print(f"density {density:<5g} {PEAK}: {bound:.0f} sequences/s")


if __name__ == "__main__":
    sys.exit(script(main))
