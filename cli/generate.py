"""``lthfunc generate``: text from a trained ticket."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from lthfunc.errors import UserError, invalid

from . import options as o
from .console import busy, put, put_json, screen
from .deployment import Round, headline


@o.with_settings("generate")
def generate(
    run: Annotated[str, typer.Argument(help="The run's folder.")],
    given: o.Given,
    prompt: Annotated[
        str,
        typer.Option("--prompt", metavar="TEXT", help="What the text begins with. \\[required]", show_default=False),
    ] = "",
    tokens: Annotated[int, o.whole_number("--tokens", "Characters, or tokens of its tokenizer, to write.")] = 200,
    temperature: Annotated[
        float,
        o.option(
            "--temperature", "Below 1 likely tokens become likelier; 0 takes the likeliest.", "X", parser=o.number
        ),
    ] = 1.0,
    top_k: Annotated[int, o.whole_number("--top-k", "Draw from this many of the likeliest tokens; 0: from all.")] = 0,
    seed: Annotated[int, o.whole_number("--seed", "Seed of the draws; the same one writes the same text.")] = 0,
    number: Round = None,
    run_seed: Annotated[
        int | None, o.whole_number("--run-seed", "One of the run's seeds. \\[default: the first]")
    ] = None,
    trust: o.Trust = False,
    json: o.Json = False,
) -> None:
    """Write text with a trained ticket, on its surviving weights alone, token by token."""
    if not prompt:
        raise UserError("--prompt: missing (expected what the text begins with)")
    o.check_least(("--tokens", tokens, 1), ("--top-k", top_k, 0))
    if not 0 <= temperature < float("inf"):
        raise invalid("--temperature", temperature, "a number of at least 0")
    with busy("loading PyTorch"):
        from lthfunc.data.tokens import vocabulary_of
        from lthfunc.runs.tickets import tickets_of_run
        from lthfunc.sparse.decoding import decoding_program, generate as lf_generate
        from lthfunc.training.cpu_threads import using_threads

    (found,) = tickets_of_run(
        Path(run), [number], run_seed, given.get("data_dir"), trusted=trust, seed_option="--run-seed"
    )
    if not found.model.tokens:
        raise UserError(
            f"{run}: has no network of text, but {found.model.name} on {found.data.name} "
            "(expected a run of --dataset text:FILE, or of another data set of tokens)"
        )
    vocabulary = vocabulary_of(found.data.labels, found.config.tokenizer)
    begin = vocabulary.numbers_of(prompt, "--prompt")
    with busy("making the program"), using_threads(1):
        program = decoding_program(found.model, found.ticket, found.data.shape[0])
        started = time.perf_counter()
        written = lf_generate(program, begin, tokens, temperature=temperature, top_k=top_k, seed=seed)
        rate = tokens / (time.perf_counter() - started)
    text = vocabulary.text(written.tolist())
    if json:
        put_json({"run": str(Path(run)), "round": found.number, "prompt": prompt, "text": text,
                  "tokens": written.tolist(), "tokens_a_second": rate})  # fmt: skip
        return
    put(prompt + text)
    screen().print(f"\n{headline(found)}: {rate:,.0f} tokens a second", style="dim", highlight=False)
