"""What is exported: a trained ticket and its network; and the check of an export's outputs."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from lthfunc.arguments import public
from lthfunc.deployment.accuracy import difference
from lthfunc.deployment.candidates import masked_module
from lthfunc.deployment.compaction.compact import Compacted, compact
from lthfunc.errors import UserError
from lthfunc.trees.model import Model
from lthfunc.trees.ops import apply_masks
from lthfunc.trees.outputs import plain_containers
from lthfunc.trees.types import Ticket


class Exportable(NamedTuple):
    """model, ticket: the trained network. shape: of one input. compacted: without dead units, else None."""

    model: Model
    ticket: Ticket
    shape: tuple[int, ...]
    compacted: Compacted | None
    why_not_compacted: str | None

    @property
    def network(self) -> nn.Module:
        """A plain module in evaluation mode: compacted where possible, else masked."""
        return self.masked if self.compacted is None else self.compacted.model.evaluating

    @property
    def plain_network(self) -> nn.Module:
        """`network` with outputs in plain dictionaries and tuples."""
        network = self.network
        return network if isinstance(self.outputs(self.inputs(2)), Tensor) else _Plain(network)

    def outputs(self, x: Tensor) -> Any:
        """The masked network's outputs in plain dictionaries and tuples."""
        with torch.no_grad():
            return plain_containers(self.masked(x.clone()))

    @property
    def masked(self) -> nn.Module:
        """The whole network with masked weights."""
        return masked_module(self.model, self.ticket)

    def inputs(self, examples: int, seed: int = 0) -> Tensor:
        """Random inputs for comparing outputs."""
        draw = torch.Generator().manual_seed(seed)
        if self.model.tokens:
            known = min(
                part.num_embeddings for part in self.model.evaluating.modules() if isinstance(part, nn.Embedding)
            )
            return torch.randint(0, known, (examples, *self.shape), generator=draw)
        return torch.randn(examples, *self.shape, generator=draw)


class Exported(NamedTuple):
    """What an export has written. beside: other files than the one that was named.

    difference: of its outputs from the masked network's, relative to the largest output.
    """

    beside: list[Path]
    difference: float


class _Plain(nn.Module):
    """A network whose outputs are of other classes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Any:
        """The outputs in plain dictionaries and tuples."""
        return plain_containers(self.network(x))


@public
def exportable_of(model: Model, ticket: Ticket, shape: tuple[int, ...]) -> Exportable:
    """Prepare an export. Raises UserError where the ticket doesn't fit the model."""
    try:
        return Exportable(model, ticket, shape, compact(model, ticket, shape), None)
    except UserError as error:
        return Exportable(model, ticket, shape, None, str(error))


def dense_sizes(ticket: Ticket) -> list[tuple[str, int]]:
    """(what, bytes) of a safetensors file of the masked weights, as it is and under gzip."""
    masked = {**apply_masks(ticket.params, ticket.masks), **ticket.buffers}
    payload = safetensors.torch.save({name: leaf.detach().cpu().contiguous() for name, leaf in masked.items()})
    return [("dense, safetensors", len(payload)), ("the same under gzip", len(gzip.compress(payload)))]


#: Inputs on which outputs are compared; another number than graphs are traced with.
EXAMPLES = 5
#: Largest difference between an export's outputs and the masked network's, relative to the largest output.
TOLERANCE = 1e-4


def compared(subject: Exportable, what: str, run: Callable[[Tensor], Any]) -> float:
    """The difference of a program's outputs from the masked network's, relative to the largest output.

    run: the program as it was read back from what is exported. Raises RuntimeError where they differ by more than
    TOLERANCE.
    """
    x = subject.inputs(EXAMPLES)
    with torch.no_grad():
        found = difference(run(x.clone()), subject.outputs(x))
    if not found <= TOLERANCE:
        raise RuntimeError(f"{what}: outputs differ from the network's by {found:.1e} of the largest")
    return found
