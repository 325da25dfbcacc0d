"""What a trained ticket is run as, what it is written as, and where a run is followed."""

from __future__ import annotations

from dataclasses import dataclass

from lthfunc.registry import Entry, Registry


@dataclass(frozen=True)
class FormatEntry(Entry):
    """whole: of a whole network, not of a layer. rounds: so that nobody is given it without asking.

    patterned: of a mask's own pattern, which compaction would break up.
    """

    whole: bool = False
    rounds: bool = False
    patterned: bool = False


@dataclass(frozen=True)
class ExportEntry(Entry):
    """suffix: of the file; "" for a folder."""

    suffix: str = ""


@dataclass(frozen=True)
class TrackerEntry(Entry):
    """place: where in a run it writes."""

    place: str = ""


#: Of a whole network: prepared -> a Candidate; of a layer: a `deployment.formats.Format`.
FORMATS = Registry("formats", "--format", {
    "dense": FormatEntry(".deployment.candidates:dense_candidate", "the masked network, compiled", whole=True),
    "compact": FormatEntry(
        ".deployment.candidates:compact_candidate",
        "without inputs, units and channels that nothing depends on, compiled", whole=True,
    ),
    "sparse": FormatEntry(
        ".deployment.candidates:sparse_candidate", "surviving weights alone, the sparse engine's program", whole=True
    ),
    "listed": FormatEntry(".deployment.formats:LISTED", "surviving weights by lists, one layer at a time"),
    "csr": FormatEntry(".deployment.formats:CSR", "compressed rows, torch.sparse"),
    "block": FormatEntry(".deployment.formats:BLOCK", "blocks that hold a weight, torch's BSR", patterned=True),
    "2:4": FormatEntry(
        ".deployment.formats:SEMI_STRUCTURED", "two of every four weights, tensor cores", patterned=True
    ),
    "int8": FormatEntry(".deployment.formats:INT8", "8-bit integers, torchao; rounds", rounds=True),
}, own=False, auto="the fastest by measurement, dense unless another is faster")  # fmt: skip

#: (Exportable, path) -> the other files that it has written.
EXPORTS = Registry("exports", "--to", {
    "onnx": ExportEntry(
        ".deployment.export.graphs:onnx", "ONNX, sparse initialisers where they are smaller", suffix=".onnx"
    ),
    "torch-export": ExportEntry(
        ".deployment.export.graphs:torch_export", "torch.export's program", suffix=".pt2"
    ),
    "aoti": ExportEntry(
        ".deployment.export.graphs:aoti", "AOTInductor's package: machine code that runs without Python",
        suffix=".pt2",
    ),
    "prune": ExportEntry(
        ".deployment.export.state_dicts:prune", "a state dict as torch.nn.utils.prune has it (_orig, _mask)",
        suffix=".pt",
    ),
    "state-dict": ExportEntry(
        ".deployment.export.state_dicts:state_dict", "a state dict of the masked weights", suffix=".pt"
    ),
    "module": ExportEntry(
        ".deployment.export.module:module", "the compacted network as a plain nn.Module: source and weights",
        suffix=".py",
    ),
    "scipy": ExportEntry(".deployment.export.state_dicts:scipy", "a folder of CSR matrices"),
})  # fmt: skip

#: (run's folder, settings) -> a Sink; by the setting that asks for it, which is the name of the package it needs.
TRACKERS = Registry("trackers", "--tracker", {
    "tensorboard": TrackerEntry(".tracking.tensorboard:TensorBoard", "event files", place="tensorboard"),
    "wandb": TrackerEntry(".tracking.wandb:Wandb", "Weights & Biases", place="wandb"),
    "mlflow": TrackerEntry(".tracking.mlflow:MLflow", "MLflow", place="mlflow.db"),
}, own=False)  # fmt: skip
