"""Inference of few sequences of tokens by `lf.sparse_program`, whose lanes are then tokens.

    lthfunc benchmark sequences --density 0.1

Sixteen sequences fill lanes of examples, and fewer took as long there. So the time of sixteen is what fewer cost with
lanes of examples. Times are the processor's, of one thread, in turns. Lower bound: the survivors' FLOPs at peak rate.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Sequence

import torch

import lthfunc as lf
from lthfunc.errors import invalid
from lthfunc.sparse.inference import SparseProgram
from lthfunc.sparse.tile_buffers import LANES

from .floors import PEAK
from .records import Options, Record, checked_densities, chosen, header, record, script, write

#: Of records.
PROGRAM = "lf.sparse_program"
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
    options.add("--repeats", type=int, default=9, help="timings of each (9)")
    options.json()
    run(**options.parsed(arguments))


def run(
    *, densities: Sequence[float] | None, width: int, layers: int, length: int, repeats: int, json: str | None
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
    tokens = torch.randint(0, _VOCABULARY, (LANES, length), generator=torch.Generator().manual_seed(0))
    for density in kept:
        state = lf.prune(density=density, score=lf.random_scores(0))(dense)
        seconds = _seconds(lf.sparse_program(model, state), tokens, repeats)
        about = {"network": model.name, "density": density, "unit": "sequences/s"}
        for count, each in seconds.items():
            records.append(record([count / one for one in each], engine=PROGRAM, sequences=count, **about))
        survivors = sum(int(mask.sum()) for name, mask in state.masks.items() if name != "characters.weight")
        records.append(record([peak / (2 * survivors * length)], engine=PEAK, sequences=LANES, **about))
        _tell(density, seconds, peak / (2 * survivors * length))
    if json is not None:
        write(json, header("sequences", "lthfunc benchmark sequences", "cpu", 1), records)
    return records


def _seconds(program: SparseProgram, tokens: torch.Tensor, repeats: int) -> dict[int, list[float]]:
    """The processor's, of as many sequences, in turns."""
    found: dict[int, list[float]] = {count: [] for count in _SEQUENCES}
    for count in _SEQUENCES:
        program(tokens[:count])
    for _ in range(repeats):
        for count, each in found.items():
            begun = time.process_time()
            program(tokens[:count])
            each.append(time.process_time() - begun)
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
