"""ONNX Runtime as a form of a ticket's network, on as many threads as PyTorch has."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lthfunc.deployment.candidates import Candidate, PreparedCandidate, weight_bytes
from lthfunc.deployment.export.exportable import exportable_of
from lthfunc.deployment.export.graphs import onnx, onnx_session
from lthfunc.trees.types import Ticket


def onnx_candidate(m: PreparedCandidate) -> Candidate | None:
    """The file that `lthfunc export --to onnx` writes, made at the first call; None on other devices than a CPU."""
    if m.x.device.type != "cpu":
        m.left_out["onnxruntime"] = "it is measured on a CPU"
        return None

    @functools.cache
    def program() -> Callable[[Tensor], Any]:
        ticket = Ticket(m.ticket.params, m.ticket.buffers, m.ticket.masks)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.onnx"
            onnx(exportable_of(m.model, ticket, tuple(m.x.shape[1:])), path)
            return onnx_session(path, torch.get_num_threads())

    network = m.whole if m.small is None else m.small.model.evaluating
    return Candidate(network, lambda x: program()(x), {}, weight_bytes(network))
