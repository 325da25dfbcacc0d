"""The exports by the names of names.py."""

from __future__ import annotations

from typing import NamedTuple

from lthfunc.deployment.export import graphs, module, state_dicts
from lthfunc.deployment.export.exportable import Export


class Exporter(NamedTuple):
    """suffix: of the file ("" for a folder)."""

    export: Export
    suffix: str


TARGETS = {
    "onnx": Exporter(graphs.onnx, ".onnx"),
    "torch-export": Exporter(graphs.torch_export, ".pt2"),
    "aoti": Exporter(graphs.aoti, ".pt2"),
    "prune": Exporter(state_dicts.prune, ".pt"),
    "state-dict": Exporter(state_dicts.state_dict, ".pt"),
    "module": Exporter(module.module, ".py"),
    "scipy": Exporter(state_dicts.scipy, ""),
}
