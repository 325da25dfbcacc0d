"""Formats to run a trained ticket in, exports, and trackers."""

from __future__ import annotations

from dataclasses import dataclass

from lthfunc.registry import Entry, Registry


@dataclass(frozen=True)
class FormatEntry(Entry):
    """whole: of a whole network, not of a layer. rounds: it rounds weights, so it is used only on request.

    patterned: of a mask's own pattern, which compaction would break up. peer: of another runtime, so it is measured
    beside the others, and used only on request.
    """

    whole: bool = False
    rounds: bool = False
    patterned: bool = False
    peer: bool = False


@dataclass(frozen=True)
class ExportEntry(Entry):
    """suffix: of the file; "" for a folder. dense: whether pruned weights are stored as well."""

    suffix: str = ""
    dense: bool = False


@dataclass(frozen=True)
class TrackerEntry(Entry):
    """place: where in a run it writes."""

    place: str = ""


#: Of a whole network: prepared -> a Candidate; of a layer: a `deployment.formats.Format`.
FORMATS = Registry("formats", "--format", {
    "dense": FormatEntry(".deployment.candidates:dense_candidate", "the masked network, compiled", whole=True),
    "compact": FormatEntry(
        ".deployment.candidates:compact_candidate",
        "the network without dead inputs, units and channels, compiled", whole=True,
    ),
    "sparse": FormatEntry(
        ".deployment.candidates:sparse_candidate", "the surviving weights on the sparse engine", whole=True
    ),
    "onnxruntime": FormatEntry(
        ".deployment.export.onnx_runtime:onnx_candidate", "ONNX Runtime, to compare with", whole=True, peer=True
    ),
    "listed": FormatEntry(".deployment.formats:LISTED", "the sparse engine's kernels, one layer at a time"),
    "csr": FormatEntry(".deployment.formats:CSR", "compressed sparse rows, torch.sparse"),
    "block": FormatEntry(".deployment.formats:BLOCK", "blocks with a surviving weight, torch's BSR", patterned=True),
    "2:4": FormatEntry(
        ".deployment.formats:SEMI_STRUCTURED", "two of every four weights, on tensor cores", patterned=True
    ),
    "int8": FormatEntry(".deployment.formats:INT8", "8-bit integers by torchao, which rounds", rounds=True),
}, own=False, auto="measures all and takes the fastest; dense wins ties")  # fmt: skip

#: (Exportable, path) -> an Exported; a user's may return the other files that it has written, or nothing.
EXPORTS = Registry("exports", "--to", {
    "onnx": ExportEntry(
        ".deployment.export.graphs:onnx", "ONNX file, with sparse initialisers where smaller", suffix=".onnx"
    ),
    "torch-export": ExportEntry(
        ".deployment.export.graphs:torch_export", "program for torch.export.load", suffix=".pt2", dense=True
    ),
    "aoti": ExportEntry(
        ".deployment.export.graphs:aoti", "AOTInductor package: machine code that runs without Python",
        suffix=".pt2", dense=True,
    ),
    "prune": ExportEntry(
        ".deployment.export.state_dicts:prune", "state dict with _orig and _mask, as in torch.nn.utils.prune",
        suffix=".pt", dense=True,
    ),
    "state-dict": ExportEntry(
        ".deployment.export.state_dicts:state_dict", "state dict of the masked weights", suffix=".pt", dense=True
    ),
    "module": ExportEntry(
        ".deployment.export.module:module", "compacted network as a plain nn.Module: source and weights",
        suffix=".py", dense=True,
    ),
    "scipy": ExportEntry(".deployment.export.state_dicts:scipy", "folder of CSR matrices"),
})  # fmt: skip

#: (run's folder, settings) -> a Sink; by the setting that requests it, which is the name of the package that it needs.
TRACKERS = Registry("trackers", "--tracker", {
    "tensorboard": TrackerEntry(".tracking.tensorboard:TensorBoard", "event files", place="tensorboard"),
    "wandb": TrackerEntry(".tracking.wandb:Wandb", "Weights & Biases", place="wandb"),
    "mlflow": TrackerEntry(".tracking.mlflow:MLflow", "MLflow", place="mlflow.db"),
}, own=False)  # fmt: skip
