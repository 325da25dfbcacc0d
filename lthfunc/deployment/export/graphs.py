"""The network as a graph for other runtimes: torch.export, AOTInductor, ONNX."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lthfunc.deployment.export.exportable import Exportable, Exported, compared
from lthfunc.errors import UserError
from lthfunc.tracebacks import first_line
from lthfunc.training.engines.toolchain import why_not
from lthfunc.trees.atomic_io import write_atomically
from lthfunc.trees.outputs import outputs_of

#: Batch size for tracing.
_TRACED = 2
#: A sparse initialiser stores a float32 and an int64 per weight, a dense one a float32.
_SPARSE_FACTOR = 3


def torch_export(subject: Exportable, path: Path) -> Exported:
    """A program (.pt2) for ``torch.export.load``, with a free batch size."""
    program = _exported(subject)
    with _whole(path) as part:
        torch.export.save(program, part)
        return Exported([], compared(subject, "torch-export", torch.export.load(part).module()))


def aoti(subject: Exportable, path: Path) -> Exported:
    """An AOTInductor package (.pt2): machine code for this kind of processor that runs without Python."""
    if reason := why_not("cpu"):
        raise UserError(f"export: aoti compiles, and {reason}")
    program = _exported(subject)
    with _whole(path) as part:
        _quietly(lambda: torch._inductor.aoti_compile_and_package(program, package_path=str(part)))
        return Exported([], compared(subject, "aoti", torch._inductor.aoti_load_package(str(part))))


def onnx(subject: Exportable, path: Path) -> Exported:
    """An ONNX file, with sparse initialisers where these are smaller; checked by ONNX Runtime."""
    try:
        import onnx as format_of
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401  # which the exporter needs
    except ImportError as error:
        raise UserError(f"export: onnx needs {error.name} (pip install 'lthfunc[export]')") from error
    batch = torch.export.Dim("batch")

    def exported() -> Any:
        return torch.onnx.export(
            subject.plain_network, (subject.inputs(_TRACED),), dynamo=True, dynamic_shapes=({0: batch},), verbose=False,
            input_names=["inputs"], output_names=_names(subject), external_data=False,
        )  # fmt: skip

    try:
        proto = _quietly(exported).model_proto
    except Exception as error:
        raise UserError(f"export: {subject.model.name} cannot become ONNX: {first_line(error)}") from error
    _make_sparse(proto.graph, format_of)
    with _whole(path) as part:
        part.write_bytes(proto.SerializeToString())
        return Exported([], compared(subject, "onnx", onnx_session(part, torch.get_num_threads())))


def onnx_session(path: Path, threads: int) -> Callable[[Tensor], Any]:
    """An ONNX file in ONNX Runtime: inputs -> outputs, a list where there are several."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(x: Tensor) -> Any:
        found = [torch.from_numpy(each) for each in session.run(None, {"inputs": x.numpy()})]
        return found[0] if len(found) == 1 else found

    return run


def _names(subject: Exportable) -> list[str]:
    """Names of the outputs: "outputs" for a tensor, a dictionary's keys, numbered names otherwise."""
    given = subject.outputs(subject.inputs(_TRACED))
    tensors = outputs_of(given).tensors
    if isinstance(given, torch.Tensor):
        return ["outputs"]
    if isinstance(given, dict) and all(isinstance(part, torch.Tensor) for part in given.values()):
        return list(given)
    return [f"output{place}" for place in range(len(tensors))]


def _make_sparse(graph: Any, onnx: Any) -> None:
    import numpy as np

    for tensor in list(graph.initializer):
        values = onnx.numpy_helper.to_array(tensor)
        places = np.flatnonzero(values)
        if values.dtype == np.float32 and 0 < _SPARSE_FACTOR * len(places) < values.size:
            kept = onnx.numpy_helper.from_array(values.reshape(-1)[places], tensor.name)
            where = onnx.numpy_helper.from_array(places.astype(np.int64), f"{tensor.name}_places")
            graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(kept, where, list(values.shape)))
            graph.initializer.remove(tensor)


def _exported(subject: Exportable) -> Any:
    batch = torch.export.Dim("batch")
    try:
        return torch.export.export(subject.plain_network, (subject.inputs(_TRACED),), dynamic_shapes=({0: batch},))
    except Exception as error:
        raise UserError(f"export: {subject.model.name} cannot be exported: {first_line(error)}") from error


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A temporary file with the target's name, which exporters look at; it becomes the target on success."""
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / path.name
        yield part
        write_atomically(path, part.read_bytes())


def _quietly(make: Any) -> Any:
    """Call without the exporters' warnings, which concern only themselves."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()
