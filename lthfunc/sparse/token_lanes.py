"""Few sequences with lanes that are tokens, since as lanes that are examples most would be empty.

A batch of sequences is one of as many tokens, each an example of the graph of one token (`decoding_graph.py`), which
attention alone has read others. A sequence is filled up to whole tiles; no token reads those behind it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lthfunc.errors import UserError
from lthfunc.sparse.builder import Builder
from lthfunc.sparse.decoding_graph import StandIns, one_token
from lthfunc.sparse.ends import ONE
from lthfunc.sparse.kernels.instructions import OPCODES, column_of
from lthfunc.sparse.lowerings.token_lanes import (
    causal_attention_among_lanes,
    full_attention_among_lanes,
    learned_row_of_lane,
    row_of_lane,
)
from lthfunc.sparse.program import Epilogue, Lowered, Program, Stored, lower
from lthfunc.sparse.sequence_inputs import captured_sequences, drawn_sequences, length_of, of_each_token
from lthfunc.sparse.tile_buffers import LANES
from lthfunc.sparse.undropped import outputs_of_graph, undropped
from lthfunc.sparse.workspace import Workspace, as_tokens
from lthfunc.trees.model import Model, apply_evaluating
from lthfunc.trees.types import Buffers, Masks, Params, TrainState

#: By which part of the largest output a program and its network may differ.
_TOLERANCE = 1e-3
#: Numbers for which threads have room beside each other, one for each value and tile, at most: 4 GiB of addresses.
_MOST_PARTIALS = 2**30
#: Sequences on which a network is compared with its program.
_COMPARED = 2

_INFERENCE = StandIns(
    causal_attention_among_lanes, row_of_lane, {}, full_attention_among_lanes, lanes=True, traced=captured_sequences
)
_TRAINING = _INFERENCE._replace(learned_row=learned_row_of_lane)


def saves_work(sequences: int, length: int, *, training: bool = False) -> bool:
    """Whether lanes of tokens take fewer vectors than lanes of examples; in a training, fewer by an eighth, below which
    its steps were measured to take longer."""
    vectors = sequences * -(-length // LANES)
    return sequences < LANES and (8 * vectors <= 7 * length if training else vectors < length)


class LanesProgram(NamedTuple):
    """Maps as many sequences as it was made for, as they are stored, to what each token gives, float32."""

    workspace: Workspace

    def __call__(self, tokens: Tensor) -> Tensor:
        """What the network gives for each token."""
        workspace, n, length = self.workspace, len(tokens), self.workspace.program.tokens
        found: Tensor = torch.ops.lthfunc.infer(
            workspace.program.code.verified, workspace.activations, workspace.memory, workspace.constants,
            as_tokens(tokens, length, 0), False,
        )  # fmt: skip
        return found.view(n, -1, *workspace.program.outputs[0][1:])[:, :length].contiguous()


def lanes_program(
    model: Model, params: Params, buffers: Buffers, masks: Masks, tokens: Tensor
) -> LanesProgram | None:  # fmt: skip
    """A program for sequences of this number and length; None where the network mixes tokens otherwise than by
    attention, or has an operation without a rule. params: masked. tokens: as stored, on which both are compared."""
    n, length = len(tokens), length_of(model, Stored(tuple(tokens.shape[1:]), tokens.dtype))
    epilogue = Epilogue(None, gradients=False)
    if length is None:
        return None
    try:
        lowered, params_read = _lowered(model, params, buffers, masks, n, length, epilogue, _INFERENCE)
    except UserError:
        return None
    found = LanesProgram(Workspace(lowered.program, params_read, buffers))
    given = found(tokens)  # which says what tokens it doesn't know, as other programs do
    with torch.no_grad():
        expected = apply_evaluating(model, params, buffers, tokens)
    return found if _is_close(given, expected) else None


def training_on_lanes(
    model: Model, state: TrainState, sequences: int, length: int, epilogue: Epilogue,
    positions: Mapping[str, Tensor] | None = None,
) -> Lowered | None:  # fmt: skip
    """The program of a training step on this many sequences of tokens; None where lanes are examples, or where the
    network is none of single tokens and attention. Which depends on sizes and on the network, never on its values.

    epilogue: with a loss. positions: as of `lower`. Where they are given, the state's params may be missing.
    """
    values = sum(leaf.numel() for leaf in model.training.parameters())
    if not saves_work(sequences, length, training=True) or sequences * -(-length // LANES) * values > _MOST_PARTIALS:
        return None
    floats = all(leaf.dtype == torch.float32 for leaf in state.params.values())  # others are refused by `lower`
    if not floats or not _trains_on_lanes(model, length):
        return None
    try:
        return _lowered(model, None, state.buffers, state.masks, sequences, length, epilogue, _TRAINING, positions)[0]
    except UserError:
        return None


def _lowered(
    model: Model, params: Params | None, buffers: Buffers, masks: Masks, sequences: int, length: int,
    epilogue: Epilogue, stand_ins: StandIns, positions: Mapping[str, Tensor] | None = None,
) -> tuple[Lowered, Params]:  # fmt: skip
    """(the program, the parameters that it reads). params: of the network; in training, whose programs are made of none
    of their values, the module's own."""
    params = {name: leaf.detach() for name, leaf in model.training.named_parameters()} if params is None else params
    graph = one_token(model, params, buffers, masks, length, stand_ins)
    lowered = lower(
        graph.captured, graph.params, buffers, masks, batch=sequences * -(-length // LANES) * LANES,
        stored=of_each_token(model), epilogue=epilogue, positions=positions,
        builder=functools.partial(Builder, tokens=length),
    )  # fmt: skip
    read = {name: buffers[name].clone() for name in graph.read}
    program = lowered.program
    if program.rebuilt is not ONE or program.outputs[0][:1] != (1,):
        raise UserError(f"engine: sparse has lanes of tokens for one output a token; {model.name} gives others")
    lowered.program = program._replace(tokens=length, folded={**program.folded, **read})
    return lowered, graph.params


@functools.lru_cache(maxsize=16)
def _trains_on_lanes(model: Model, length: int) -> bool:
    """Whether the network that is trained, of whatever values, gives on lanes of tokens what it gives otherwise."""
    draw, module = torch.Generator().manual_seed(0), model.training
    buffers = {name: leaf.detach().clone() for name, leaf in module.named_buffers()}
    # A little away from where they are, since zeros would hide what lies before them.
    params = {
        name: leaf.detach() + 0.02 * torch.randn(leaf.shape, generator=draw) for name, leaf in module.named_parameters()
    }
    try:
        graph = undropped(captured_sequences(model, length, training=True, examples=_COMPARED))
        still = _TRAINING._replace(drops=False)
        lowered, _ = _lowered(model, None, buffers, {}, _COMPARED, length, Epilogue(None, gradients=False), still)
    except UserError:
        return False
    tokens = drawn_sequences(model, _COMPARED, length, _vocabulary(lowered.program), draw)
    given = LanesProgram(Workspace(lowered.program, params, buffers))(tokens)
    with torch.no_grad():
        (expected,) = outputs_of_graph(graph, params, buffers, tokens)
    return _is_close(given, expected)


def _vocabulary(program: Program) -> int:
    """How many tokens there are; two, where none are embedded."""
    rows = program.code.rows
    embeddings = rows[rows[:, 0] == OPCODES["embed"]]
    return min(embeddings[:, column_of("embed", "vocabulary")].tolist(), default=2)


def _is_close(given: Tensor, expected: object) -> bool:
    if not isinstance(expected, Tensor) or expected.shape != given.shape:
        return False
    return not bool((given - expected).abs().max() > _TOLERANCE * expected.abs().max())
