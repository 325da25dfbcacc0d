"""The exports by the names of names.py."""

from __future__ import annotations

from typing import NamedTuple

from lthfunc.execution.export import graphs, module, packed, states
from lthfunc.execution.export.subject import Export


class Target(NamedTuple):
    """suffix: of the file ("" for a folder)."""

    export: Export
    suffix: str


TARGETS = {
    "onnx": Target(graphs.onnx, ".onnx"),
    "torch-export": Target(graphs.torch_export, ".pt2"),
    "aoti": Target(graphs.aoti, ".pt2"),
    "prune": Target(states.prune, ".pt"),
    "state-dict": Target(states.state_dict, ".pt"),
    "module": Target(module.module, ".py"),
    "scipy": Target(states.scipy, ""),
    "packed": Target(packed.packed, ".safetensors"),
}
