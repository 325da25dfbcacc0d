"""Weights for other libraries: state dicts, the pairs of nn.utils.prune, SciPy's matrices."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lthfunc.deployment.export.exportable import Exportable, Exported, compared
from lthfunc.deployment.export.matrices import as_parameter, matrices
from lthfunc.trees.atomic_io import safe_file_name, write_atomically
from lthfunc.trees.leaf_names import first_names, put_values
from lthfunc.trees.ops import apply_masks


def state_dict(subject: Exportable, path: Path) -> Exported:
    """The masked weights for ``module.load_state_dict(torch.load(path, weights_only=True))``.

    It has the keys of the module's own state dict: both names of a shared weight, and only persistent buffers.
    """
    payload = _saved(subject.masked.state_dict())
    found = compared(subject, "state-dict", _with_state(subject.masked, _loaded(payload)))
    write_atomically(path, payload)
    return Exported([], found)


def prune(subject: Exportable, path: Path) -> Exported:
    """A state dict with ``weight_orig`` and ``weight_mask``, as torch.nn.utils.prune makes them.

    A shared weight is pruned under each of its names.
    """
    first, masks = first_names(subject.model.evaluating), subject.ticket.masks
    state = {}
    for name, leaf in subject.masked.state_dict().items():
        mask = masks.get(first.get(name, name))
        if mask is None:
            state[name] = leaf
        else:
            state[f"{name}_orig"], state[f"{name}_mask"] = leaf, mask.to(leaf)
    payload = _saved(state)
    read = _loaded(payload)
    whole = {
        name: read[name] if name in read else read[f"{name}_orig"] * read[f"{name}_mask"]
        for name in subject.masked.state_dict()
    }
    found = compared(subject, "prune", _with_state(subject.masked, whole))
    write_atomically(path, payload)
    return Exported([], found)


def scipy(subject: Exportable, path: Path) -> Exported:
    """A folder with a CSR matrix (outputs, inputs) per layer for ``scipy.sparse.load_npz``, and the rest.

    The inputs of a convolution, transposed or not, are the kernel positions of its input channels, channel by channel;
    with groups, those of the output's group. The inputs of an embedding are its tokens. A pruned bias is a column. A
    parameter of an unknown layer is flattened to two dimensions as it is stored. A shared weight has a file per name.
    What has no mask goes to ``rest.npz``.
    """
    import numpy as np
    from scipy import sparse

    ticket, network = subject.ticket, subject.model.evaluating
    params = apply_masks(ticket.params, ticket.masks)
    files, read = dict[Path, bytes](), dict[str, Tensor]()
    for name, values, mask in matrices(network, params, ticket.masks):
        rows, columns = mask.numpy().nonzero()
        kept = _array(values)[rows, columns]  # including survivors that happen to be zero
        matrix = sparse.csr_matrix((kept, (rows, columns)), shape=tuple(mask.shape))
        files[path / f"{safe_file_name(name)}.npz"] = payload = _written(partial(sparse.save_npz, matrix=matrix))
        again = torch.from_numpy(sparse.load_npz(io.BytesIO(payload)).toarray())
        read[first_names(network)[name]] = as_parameter(network, name, params, again)
    rest = {name: _array(leaf) for name, leaf in {**params, **ticket.buffers}.items() if name not in ticket.masks}
    files[path / "rest.npz"] = _written(lambda file: np.savez(file, **rest))
    read |= {name: torch.from_numpy(each) for name, each in rest.items()}
    leaves = {**params, **ticket.buffers}
    module = put_values(subject.masked, {name: leaf.to(leaves[name].dtype) for name, leaf in read.items()})
    found = compared(subject, "scipy", module)
    path.mkdir(parents=True, exist_ok=True)
    for file, payload in files.items():
        write_atomically(file, payload)
    return Exported([file for file in files if file.name != "rest.npz"], found)


def _array(leaf: Tensor) -> Any:
    """As a NumPy array; NumPy has no bfloat16."""
    leaf = leaf.detach().cpu()
    return (leaf.float() if leaf.dtype == torch.bfloat16 else leaf).numpy()


def _saved(state: Mapping[str, Any]) -> bytes:
    plain = {name: leaf.contiguous() if isinstance(leaf, Tensor) else leaf for name, leaf in state.items()}
    return _written(lambda file: torch.save(plain, file))


def _loaded(payload: bytes) -> dict[str, Any]:
    """A state dict that was just saved, as its users read it."""
    found: dict[str, Any] = torch.load(io.BytesIO(payload), weights_only=True)
    return found


def _with_state(module: nn.Module, state: Mapping[str, Any]) -> nn.Module:
    module.load_state_dict(state)
    return module


def _written(write: Callable[[io.BytesIO], Any]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()
