"""What forms, formats and exports are called, for help and checks; torch is not needed here.

FORMS and LAYER_FORMATS are turned into code in specialize.py and formats.py, TARGETS in export/table.py.
"""

from __future__ import annotations

#: Forms of whole networks.
FORMS = {
    "dense": "the masked network, compiled",
    "compact": "without inputs, units and channels that nothing depends on, compiled",
    "sparse": "surviving weights alone, the sparse engine's program",
}
#: Formats of single layers.
LAYER_FORMATS = {
    "listed": "surviving weights by lists, one layer at a time",
    "csr": "compressed rows, torch.sparse",
    "block": "blocks that hold a weight, torch's BSR",
    "2:4": "two of every four weights, tensor cores",
    "int8": "8-bit integers, torchao; rounds",
}
#: What `format` takes.
FORMATS = ("auto", *FORMS, *LAYER_FORMATS)
#: Exports.
TARGETS = {
    "onnx": "ONNX, sparse initialisers where they are smaller",
    "torch-export": "torch.export's program",
    "aoti": "AOTInductor's package: machine code that runs without Python",
    "prune": "a state dict as torch.nn.utils.prune has it (_orig, _mask)",
    "state-dict": "a state dict of the masked weights",
    "module": "the compacted network as a plain nn.Module: source and weights",
    "scipy": "a folder of CSR matrices",
}
