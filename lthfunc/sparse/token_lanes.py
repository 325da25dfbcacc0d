"""Inference of few sequences with lanes that are tokens, since as lanes that are examples most would be empty.

A batch of sequences is one of as many tokens, each an example of the graph of one token (`decoding_graph.py`), which
causal attention alone has read others. A sequence is filled up to whole tiles; no token reads those behind it.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lthfunc.errors import UserError
from lthfunc.sparse.decoding_graph import StandIns, one_token
from lthfunc.sparse.lowerings.token_lanes import LanesBuilder, attention_among_lanes, row_of_lane
from lthfunc.sparse.program import Epilogue, Stored, program_of
from lthfunc.sparse.tile_buffers import LANES
from lthfunc.sparse.workspace import Workspace
from lthfunc.trees.model import Model, apply_evaluating
from lthfunc.trees.types import Buffers, Masks, Params

#: By which part of the largest output a program and its network may differ.
_TOLERANCE = 1e-3


def saves_work(sequences: int, length: int) -> bool:
    """Whether lanes of tokens take fewer vectors than lanes of examples."""
    return sequences < LANES and sequences * -(-length // LANES) < length


class LanesProgram(NamedTuple):
    """Maps as many sequences as it was made for, int64 (n, length), to what each token gives, float32."""

    workspace: Workspace

    def __call__(self, tokens: Tensor) -> Tensor:
        """What the network gives for each token."""
        workspace, (n, length) = self.workspace, tokens.shape
        padded = F.pad(tokens, (0, -length % LANES))
        found: Tensor = torch.ops.lthfunc.infer(
            workspace.program.code.verified, workspace.activations, workspace.memory, workspace.constants,
            padded.view(-1, 1), False,
        )  # fmt: skip
        return found.view(n, padded.shape[1], *workspace.program.outputs[0][1:])[:, :length].contiguous()


def lanes_program(
    model: Model, params: Params, buffers: Buffers, masks: Masks, tokens: Tensor
) -> LanesProgram | None:  # fmt: skip
    """A program for sequences of this number and length; None where the network mixes tokens otherwise than by causal
    attention, or has an operation without a rule. params: masked. tokens: (n, length), on which both are compared."""
    n, length = tokens.shape
    tiles = -(-length // LANES)
    stand_ins = StandIns(attention_among_lanes, row_of_lane, {})
    try:
        graph = one_token(model, params, buffers, masks, length, stand_ins)
        program = program_of(
            graph.captured, graph.params, buffers, masks, batch=n * tiles * LANES, stored=Stored((1,), torch.int64),
            epilogue=Epilogue(None, gradients=False), builder=functools.partial(LanesBuilder, tiles_each=tiles),
        )  # fmt: skip
    except UserError:
        return None
    found = LanesProgram(Workspace(program, graph.params, buffers))
    given = found(tokens)  # which says what tokens it doesn't know, as other programs do
    with torch.no_grad():
        expected = apply_evaluating(model, params, buffers, tokens)
    if not isinstance(expected, Tensor) or expected.shape != given.shape:
        return None
    return None if (given - expected).abs().max() > _TOLERANCE * expected.abs().max() else found
