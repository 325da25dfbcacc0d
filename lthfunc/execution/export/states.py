"""Weights for other libraries: state dicts, nn.utils.prune's pairs, SciPy's matrices."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from lthfunc.execution.export.subject import Subject
from lthfunc.trees.ops import apply_masks
from lthfunc.trees.writing import write_atomically


def state_dict(subject: Subject, path: Path) -> list[Path]:
    """The masked weights as ``module.load_state_dict`` takes them (``torch.load(path, weights_only=True)``)."""
    ticket = subject.ticket
    _save({**apply_masks(ticket.params, ticket.masks), **ticket.buffers}, path)
    return []


def prune(subject: Subject, path: Path) -> list[Path]:
    """A state dict with ``weight_orig`` and ``weight_mask``, as a module under torch.nn.utils.prune has them."""
    ticket = subject.ticket
    state = {}
    for name, leaf in {**ticket.params, **ticket.buffers}.items():
        if name in ticket.masks:
            state[f"{name}_orig"], state[f"{name}_mask"] = leaf, ticket.masks[name].to(leaf.dtype)
        else:
            state[name] = leaf
    _save(state, path)
    return []


def scipy(subject: Subject, path: Path) -> list[Path]:
    """A folder with a CSR matrix (outputs, inputs) for each layer, for ``scipy.sparse.load_npz``, and the rest.

    A convolution's inputs are its input channels' kernel places, one after the other. What is not a matrix of surviving
    weights goes to ``rest.npz``.
    """
    import numpy as np
    from scipy import sparse

    ticket = subject.ticket
    params = apply_masks(ticket.params, ticket.masks)
    path.mkdir(parents=True, exist_ok=True)
    for name, mask in ticket.masks.items():
        matrix = mask.flatten(1).numpy()
        rows, columns = matrix.nonzero()
        values = params[name].flatten(1).numpy()[rows, columns]  # also a survivor that is zero by chance
        found = sparse.csr_matrix((values, (rows, columns)), shape=matrix.shape)
        _write(path / f"{name}.npz", lambda file, found=found: sparse.save_npz(file, found))
    rest: dict[str, Any] = {
        name: leaf.numpy() for name, leaf in {**params, **ticket.buffers}.items() if name not in ticket.masks
    }
    _write(path / "rest.npz", lambda file: np.savez(file, **rest))
    return [path / f"{name}.npz" for name in ticket.masks]


def _save(state: dict[str, Any], path: Path) -> None:
    _write(path, lambda file: torch.save({name: leaf.contiguous() for name, leaf in state.items()}, file))


def _write(path: Path, save: Any) -> None:
    file = io.BytesIO()
    save(file)
    write_atomically(path, file.getvalue())
