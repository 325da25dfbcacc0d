"""The exports by name."""

from __future__ import annotations

from typing import NamedTuple

from lthfunc.execution.export import graphs, module, packed, states
from lthfunc.execution.export.subject import Export


class Target(NamedTuple):
    """suffix: of the file ("" for a folder). about: for help."""

    export: Export
    suffix: str
    about: str


TARGETS = {
    "onnx": Target(graphs.onnx, ".onnx", "ONNX, sparse initialisers where they are smaller"),
    "torch-export": Target(graphs.torch_export, ".pt2", "torch.export's program"),
    "aoti": Target(graphs.aoti, ".pt2", "AOTInductor's package, machine code that runs without Python"),
    "prune": Target(states.prune, ".pt", "a state dict as torch.nn.utils.prune has it (_orig, _mask)"),
    "state-dict": Target(states.state_dict, ".pt", "a state dict of the masked weights"),
    "module": Target(module.module, ".py", "the compacted network as a plain nn.Module, source and weights"),
    "scipy": Target(states.scipy, "", "a folder of CSR matrices"),
    "packed": Target(packed.packed, ".safetensors", "survivors and coded positions, near the entropy bound"),
}
