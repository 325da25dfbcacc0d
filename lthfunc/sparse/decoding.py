"""Text from a ticket, token by token, on its survivors: keys, values and states of earlier tokens are kept."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor

from lthfunc.argument_hints import described
from lthfunc.arguments import public
from lthfunc.errors import UserError, invalid
from lthfunc.sparse.capture import CannotTraceError
from lthfunc.sparse.decoding_graph import one_token
from lthfunc.sparse.kernels.build import load_kernels
from lthfunc.sparse.lowerings.decoding import DecodingBuilder
from lthfunc.sparse.program import Epilogue, Stored, program_of
from lthfunc.sparse.workspace import Workspace
from lthfunc.trees import rng
from lthfunc.trees.model import Model, apply_evaluating
from lthfunc.trees.ops import apply_masks
from lthfunc.trees.types import Params, Ticket, TrainState

#: Tokens on which a program is compared with its network, and by which part of the largest output both may differ.
_COMPARED, _TOLERANCE = 8, 1e-3


class DecodingProgram:
    """Maps the tokens of a sequence, int64 (n,), to the logits of what follows each, float32 (n, vocabulary).

    length: the most tokens of a sequence. vocabulary: how many tokens there are. It keeps its own copy of the weights.
    Threads may share a program: it reads their sequences one after the other, since it has memory for one.
    """

    def __init__(self, model: Model, ticket: Ticket | TrainState, length: int) -> None:
        load_kernels()
        params = apply_masks(ticket.params, ticket.masks)
        try:
            graph = one_token(model, params, ticket.buffers, ticket.masks, length)
        except CannotTraceError as error:
            raise UserError(
                f"decoding_program: {model.name} cannot be traced on sequences of {length} tokens{error.why}"
            ) from error
        made: list[DecodingBuilder] = []

        def builder(batch: int, training: bool, **more: Any) -> DecodingBuilder:
            made.append(DecodingBuilder(batch, training, length=length, **more))
            return made[0]

        program = program_of(
            graph.captured, graph.params, ticket.buffers, ticket.masks, batch=1, stored=Stored((1,), torch.int64),
            epilogue=Epilogue(None, gradients=False), builder=builder,
        )  # fmt: skip
        workspace = Workspace(program, graph.params, ticket.buffers)
        self.length, self.vocabulary = length, program.outputs[0][-1]
        self._lock = threading.Lock()  # PyTorch lets other threads run while an operation does
        self._memory = workspace.activations, workspace.memory, workspace.constants
        self._code, self._number = program.code, program.code.verified
        self._moving = torch.tensor(list(made[0].moving(program.code)), dtype=torch.int64).view(-1, 3)
        states = [(each.base, each.vectors) for each in made[0].states]
        self._states = torch.tensor(states, dtype=torch.int64).view(-1, 2)
        self._compare(model, ticket, params)

    def __call__(self, tokens: Tensor) -> Tensor:
        """The logits (n, vocabulary) of what follows each of the first n tokens of a sequence, int64 (n,)."""
        self._check(tokens)
        if len(tokens) > self.length:
            raise invalid("tokens", f"{len(tokens)} of them", f"up to {self.length}")
        with self._lock:
            logits: Tensor = torch.ops.lthfunc.decode(
                self._number, self._moving, self._states, self.length, *self._memory, tokens.contiguous()
            )
        return logits

    def generate(self, prompt: Tensor, count: int, temperature: float, top_k: int, seed: int) -> Tensor:
        """`lf.generate`."""
        self._check(prompt)
        tokens = torch.cat([prompt, prompt.new_zeros(count)])
        draws = torch.rand(count, dtype=torch.float64, generator=rng.generator(seed, "generated tokens"))
        try:
            with self._lock:
                torch.ops.lthfunc.generate(
                    self._number, self._moving, self._states, self.length, *self._memory, tokens, draws, temperature,
                    top_k,
                )  # fmt: skip
        except IndexError as error:
            raise UserError(f"generate: {error}") from None
        return tokens[len(prompt) :]

    def _check(self, tokens: Tensor) -> None:
        if not isinstance(tokens, Tensor):
            raise invalid("tokens", described(tokens), "a tensor of them, such as torch.tensor([3, 1, 4])")
        if tokens.dtype != torch.int64 or tokens.ndim != 1 or not len(tokens) or tokens.device.type != "cpu":
            given = f"{tokens.dtype} of shape {tuple(tokens.shape)} on {tokens.device.type}"
            raise invalid("tokens", given, "torch.int64 (n,) on the CPU, of one token or more")
        least, most = int(tokens.min()), int(tokens.max())
        if least < 0 or most >= self.vocabulary:
            raise invalid("tokens", least if least < 0 else most, f"whole numbers from 0 to {self.vocabulary - 1}")

    def _compare(self, model: Model, ticket: Ticket | TrainState, params: Params) -> None:
        """Once, with the network itself: a graph may mix tokens in ways that its operations don't show."""
        tokens = torch.arange(min(_COMPARED, self.length)) % self.vocabulary
        with torch.no_grad():
            expected = apply_evaluating(model, params, ticket.buffers, tokens[None]).view(-1, self.vocabulary)
        apart, largest = (self(tokens) - expected).abs().max(), expected.abs().max()
        if apart > _TOLERANCE * largest:  # numbers that are none are not judged
            raise UserError(
                f"decoding_program: {model.name} gives other outputs token by token (they differ by "
                f"{float(apart / largest):.1g} of the largest), so it mixes tokens otherwise than by causal attention "
                "and recurrent layers"
            )


@public
def decoding_program(model: Model, ticket: Ticket | TrainState, length: int) -> DecodingProgram:
    """The ticket's network on its surviving weights, given sequences token by token, on a CPU.

    Keys and values of earlier tokens are kept, and states of recurrent layers. So a token costs its own products, and
    its attention to those before.

    model: of tokens, whose outputs are logits (n, length, vocabulary), each of the tokens so far: it mixes tokens by
    causal attention (``F.scaled_dot_product_attention``) and recurrent layers (``nn.LSTM``, ``nn.GRU``, ``nn.RNN``) in
    one direction alone. length: the most tokens of a sequence, 2 or more, such
    as that of the windows that it was trained on.

    Returns a function of tokens, int64 (n,), from the beginning of a sequence, to logits (n, vocabulary); `generate`
    continues them. Threads may share it: their sequences are read in turn. Raises UserError where an operation has no
    rule, with its line; for a network that mixes tokens otherwise; and where the kernels cannot be built.

    >>> model = lf.models.char_transformer((16,), 65)
    >>> program = lf.decoding_program(model, lf.prune(fraction=0.95)(lf.init(model)), 16)
    >>> program(torch.tensor([3, 1, 4])).shape
    torch.Size([3, 65])
    """
    if not model.tokens:
        raise UserError(f"decoding_program: {model.name} takes no tokens (from_module(..., tokens=True))")
    if length < 2:
        raise invalid("decoding_program: length", length, "a whole number of at least 2")
    return DecodingProgram(model, ticket, length)


@public
def generate(
    program: DecodingProgram,
    prompt: Tensor,
    count: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
) -> Tensor:
    """`count` tokens that follow a prompt, each drawn from what the program expects after those before it.

    prompt: int64 (n,), one token or more. temperature: what logits are divided by before softmax; 0 takes the likeliest
    token. top_k: how many of the likeliest tokens may be drawn; 0 for all. seed: of the draws; the same seed gives the
    same tokens, and the first of more.

    Where a sequence has as many tokens as the program's length, the last half of them begins a new one.

    Returns int64 (count,). Raises UserError for tokens that the program doesn't know, and where a network's outputs are
    not numbers.

    >>> model = lf.models.char_transformer((16,), 65)
    >>> program = lf.decoding_program(model, lf.init(model), 16)
    >>> lf.generate(program, torch.tensor([3, 1, 4]), 20, seed=1).shape
    torch.Size([20])
    """
    return program.generate(prompt, count, temperature, top_k, seed)
