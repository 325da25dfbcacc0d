"""Weights for other libraries: state dicts, the pairs of nn.utils.prune, SciPy's matrices."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lthfunc.deployment.export.exportable import Exportable
from lthfunc.deployment.export.matrices import matrices
from lthfunc.trees.atomic_io import safe_file_name, write_atomically
from lthfunc.trees.leaf_names import first_names
from lthfunc.trees.ops import apply_masks


def state_dict(subject: Exportable, path: Path) -> list[Path]:
    """The masked weights for ``module.load_state_dict(torch.load(path, weights_only=True))``.

    It has the keys of the module's own state dict: both names of a shared weight, and only persistent buffers.
    """
    _save(subject.masked.state_dict(), path)
    return []


def prune(subject: Exportable, path: Path) -> list[Path]:
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
    _save(state, path)
    return []


def scipy(subject: Exportable, path: Path) -> list[Path]:
    """A folder with a CSR matrix (outputs, inputs) per layer for ``scipy.sparse.load_npz``, and the rest.

    The inputs of a convolution, transposed or not, are the kernel positions of its input channels, channel by channel;
    with groups, those of the output's group. The inputs of an embedding are its tokens. A pruned bias is a column. A
    parameter of an unknown layer is flattened to two dimensions as it is stored. A shared weight has a file per name.
    What has no mask goes to ``rest.npz``.
    """
    import numpy as np
    from scipy import sparse

    ticket = subject.ticket
    params = apply_masks(ticket.params, ticket.masks)
    path.mkdir(parents=True, exist_ok=True)
    written = []
    for name, values, mask in matrices(subject.model.evaluating, params, ticket.masks):
        rows, columns = mask.numpy().nonzero()
        kept = _array(values)[rows, columns]  # including survivors that happen to be zero
        found = sparse.csr_matrix((kept, (rows, columns)), shape=tuple(mask.shape))
        written.append(path / f"{safe_file_name(name)}.npz")
        _write(written[-1], lambda file, found=found: sparse.save_npz(file, found))
    rest = {name: _array(leaf) for name, leaf in {**params, **ticket.buffers}.items() if name not in ticket.masks}
    _write(path / "rest.npz", lambda file: np.savez(file, **rest))
    return written


def _array(leaf: Tensor) -> Any:
    """As a NumPy array; NumPy has no bfloat16."""
    leaf = leaf.detach().cpu()
    return (leaf.float() if leaf.dtype == torch.bfloat16 else leaf).numpy()


def _save(state: dict[str, Any], path: Path) -> None:
    plain = {name: leaf.contiguous() if isinstance(leaf, Tensor) else leaf for name, leaf in state.items()}
    _write(path, lambda file: torch.save(plain, file))


def _write(path: Path, save: Any) -> None:
    file = io.BytesIO()
    save(file)
    write_atomically(path, file.getvalue())
