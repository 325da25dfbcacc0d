"""The exports by the names of names.py."""

from __future__ import annotations

from typing import NamedTuple

from lthfunc.deployment.export import graphs, module, packed, state_dicts
from lthfunc.deployment.export.exportable import Export


class Target(NamedTuple):
    """suffix: of the file ("" for a folder)."""

    export: Export
    suffix: str


TARGETS = {
    "onnx": Target(graphs.onnx, ".onnx"),
    "torch-export": Target(graphs.torch_export, ".pt2"),
    "aoti": Target(graphs.aoti, ".pt2"),
    "prune": Target(state_dicts.prune, ".pt"),
    "state-dict": Target(state_dicts.state_dict, ".pt"),
    "module": Target(module.module, ".py"),
    "scipy": Target(state_dicts.scipy, ""),
    "packed": Target(packed.packed, ".safetensors"),
}
