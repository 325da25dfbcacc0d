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
from lthfunc.deployment.export.graphs import onnx
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
            return session(path, torch.get_num_threads())

    network = m.whole if m.small is None else m.small.model.evaluating
    return Candidate(network, lambda x: program()(x), {}, weight_bytes(network))


def session(path: Path, threads: int) -> Callable[[Tensor], Any]:
    """An exported file in ONNX Runtime: inputs -> outputs, a list where there are several."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    made = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(x: Tensor) -> Any:
        found = [torch.from_numpy(each) for each in made.run(None, {"inputs": x.numpy()})]
        return found[0] if len(found) == 1 else found

    return run
