"""Tokens per second of text from tickets, one sequence at a time, beside the compiled dense network.

    taskset -c 0 lthfunc benchmark generate --density 0.05

All write the same kind of text, the likeliest token each time, from one token to the most that a sequence may have. The
dense network, compiled, keeps keys and values as well, or its states (`--arch lstm`); beside it, as most loops do, it
reads the whole sequence anew for each token. Lower bounds: the survivors' FLOPs at the peak rate, and their values and
places read once.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import lthfunc as lf
from lthfunc.deployment.timing import TimedFunction, in_turn, repeated
from lthfunc.errors import invalid
from lthfunc.training.cpu_threads import using_threads
from lthfunc.training.engines.tracing import compiled

from .floors import BYTES, PEAK, peak_rate, reading_rate
from .records import Options, Record, checked_densities, chosen, header, record, saying, script, speedup, write

#: Of records.
TICKET, CACHED, ANEW = "lf.generate", "dense, compiled, earlier tokens kept", "dense, compiled, all tokens anew"
_ARCHITECTURES = "char-transformer", "lstm"
_DENSITIES, _VOCABULARY = (1.0, 0.1, 0.05, 0.02), 65
#: Bytes of a survivor: its value and its place.
_BYTES = 8


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write. Raises UserError for what cannot be measured."""
    options = Options("generate", __doc__)
    options.densities(", ".join(f"{each:g}" for each in _DENSITIES))
    options.add("--arch", default=_ARCHITECTURES[0], help="char-transformer (its default) or lstm")
    options.add("--width", type=int, default=128, help="of the network (128)")
    options.add("--layers", type=int, default=4, help="of the network (4)")
    options.add("--length", type=int, default=64, help="the most tokens of a sequence (64)")
    options.threads()
    options.timings(0.5, 15)
    options.json()
    run(**options.parsed(arguments))


def run(
    *, arch: str, densities: Sequence[float] | None, width: int, layers: int, length: int, threads: int, seconds: float,
    repeats: int, json: str | None,
) -> list[Record]:  # fmt: skip
    """Measure, print, and write JSON where asked to."""
    kept = checked_densities(densities, _DENSITIES)
    for option, value, least in (("width", width, 4), ("layers", layers, 1), ("length", length, 2)):
        if value < least:
            raise invalid(f"--{option}", value, f"a whole number of at least {least}")
    if arch not in _ARCHITECTURES:
        raise invalid("--arch", arch, " or ".join(_ARCHITECTURES))
    chosen((), (), (), threads)
    model = lf.models.build(arch, (length,), _VOCABULARY, {"width": str(width), "layers": str(layers)}, "text")
    dense = lf.init(model)
    with using_threads(threads):
        variants = {(name, 1.0): run for name, run in _dense(model, dense, length).items()}
        states = {density: lf.prune(density=density, score=lf.random_scores(0))(dense) for density in kept}
        variants |= {(TICKET, density): _ticket(model, state, length) for density, state in states.items()}
        found = in_turn(variants, seconds=seconds, repeats=repeats, device="cpu", say=saying(model.name))
        rates = {key: [length * each for each in sequences] for key, sequences in found.items()}
        about = {"network": model.name, "width": width, "layers": layers, "length": length, "threads": threads,
                 "unit": "tokens/s"}  # fmt: skip
        records = [record(each, engine=name, density=density, **about) for (name, density), each in rates.items()]
        peak = peak_rate("cpu")
        for density, state in states.items():
            for name, bound in _bounds(state, peak).items():
                records.append(record([bound], engine=name, density=density, **about))
    _tell(rates, records)
    if json is not None:
        write(json, header("generate", "lthfunc benchmark generate", "cpu", threads), records)
    return records


def _tell(rates: dict[tuple[str, float], list[float]], records: Sequence[Record]) -> None:
    for each in records:
        key = each["engine"], each["density"]
        times = f"{speedup(rates[key], rates[CACHED, 1.0]):6.2f} ×" if key in rates else ""
        print(f"{key[0]:>40} at {key[1]:<5g} {each['median']:10.0f} tokens/s  {times}")


def _ticket(model: lf.Model, state: lf.TrainState, length: int) -> TimedFunction:
    program, prompt = lf.decoding_program(model, state, length), torch.zeros(1, dtype=torch.int64)
    return repeated(functools.partial(lf.generate, program, prompt, length, temperature=0.0))


def _bounds(state: lf.TrainState, peak: float) -> dict[str, float]:
    """Tokens per second of what each token reads of the weights and multiplies by them; embeddings are looked up.

    peak: FLOP/s.
    """
    kept = sum(int(mask.sum()) for name, mask in state.masks.items() if name != "characters.weight")
    size = _BYTES * kept
    return {PEAK: peak / (2 * kept), BYTES: reading_rate(size, "cpu") / size}


def _dense(model: lf.Model, state: lf.TrainState, length: int) -> dict[str, TimedFunction]:
    """Loops that write `length` tokens with compiled steps."""
    net: Any = lf.to_module(lf.ticket(state), model).eval()
    first, places = torch.zeros(1, 1, dtype=torch.int64), list(torch.arange(length)[:, None])
    recurrent = hasattr(net, "lstm")
    one, memory = (_recurrent_step, _states(net)) if recurrent else (_step, _caches(net, length))
    window = torch.zeros(1, length, dtype=torch.int64)
    with torch.no_grad():
        step = compiled(functools.partial(one, net), (first, places[0], *memory), "step")
        whole = compiled(functools.partial(_last, net), (window, places[0]), "whole")

    def kept(n: int) -> None:
        with torch.no_grad():
            for _ in range(n):
                token, kept = first, memory
                for place in places:
                    token, *states = step(token, place, *kept)
                    kept = states or memory  # keys and values are written where they lie

    def anew(n: int) -> None:
        with torch.no_grad():
            for _ in range(n):
                for place in places[:-1]:
                    (token,) = whole(window, place)
                    window[0, place + 1] = token
                whole(window, places[-1])

    return {CACHED: kept, ANEW: anew}


def _caches(net: Any, length: int) -> list[Tensor]:
    """Room for keys and values of a transformer's blocks."""
    attention = net.blocks[0].attention
    each = 1, attention.heads, length, attention.qkv.in_features // attention.heads
    return [torch.zeros(each) for _ in range(2 * len(net.blocks))]


def _states(net: Any) -> list[Tensor]:
    """Those that an LSTM begins with."""
    return [torch.zeros(net.lstm.num_layers, 1, net.lstm.hidden_size) for _ in range(2)]


def _recurrent_step(net: Any, token: Tensor, place: Tensor, state: Tensor, cells: Tensor) -> list[Tensor]:
    """The likeliest token after this one, and the states after it."""
    outputs, states = net.lstm(net.characters(token), (state, cells))
    return [net.head(outputs).argmax(-1), *states]


def _step(net: Any, token: Tensor, place: Tensor, *caches: Tensor) -> list[Tensor]:
    """The likeliest token after this one, whose keys and values are written beside those before it."""
    x = net.characters(token) + net.places.index_select(0, place)
    so_far = (torch.arange(len(net.places)) <= place)[None]
    for block, keys, values in zip(net.blocks, caches[::2], caches[1::2], strict=True):
        heads = block.attention.heads
        q, k, v = block.attention.qkv(block.norm1(x)).view(1, 1, 3, heads, -1).permute(2, 0, 3, 1, 4)
        keys.index_copy_(2, place, k)
        values.index_copy_(2, place, v)
        mixed = F.scaled_dot_product_attention(q, keys, values, attn_mask=so_far)
        x = x + block.attention.out(mixed.transpose(1, 2).reshape(1, 1, -1))
        x = x + block.down(F.gelu(block.up(block.norm2(x))))
    return [net.head(net.norm(x)).argmax(-1)]


def _last(net: Any, window: Tensor, place: Tensor) -> list[Tensor]:
    """The likeliest token after a place."""
    return [net(window).index_select(1, place).argmax(-1)]


if __name__ == "__main__":
    sys.exit(script(main))
