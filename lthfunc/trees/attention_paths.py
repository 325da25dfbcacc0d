"""PyTorch's attention layers compute in evaluation what they compute in training."""

from __future__ import annotations

import threading

import torch


class _OnePath:
    """A context in which `nn.MultiheadAttention` and `nn.TransformerEncoder` take the path that they train on.

    The other one, for evaluation without gradients, gives NaN for a query that reads no key, and zeros for padding: a
    network would be evaluated as another than the one that was trained. PyTorch's switch is one for all threads: the
    first that enters turns it off, and the last that leaves puts it back. Within `torch.compile` it stays as it is.
    """

    def __init__(self) -> None:
        self._lock, self._within, self._before = threading.Lock(), 0, True

    def __enter__(self) -> None:
        if torch.compiler.is_compiling():  # the compiler knows no locks
            return
        with self._lock:
            if self._within == 0:
                self._before = torch.backends.mha.get_fastpath_enabled()
                torch.backends.mha.set_fastpath_enabled(False)
            self._within += 1

    def __exit__(self, *exception: object) -> None:
        if torch.compiler.is_compiling():
            return
        with self._lock:
            self._within -= 1
            if self._within == 0:
                torch.backends.mha.set_fastpath_enabled(self._before)


one_path_of_attention = _OnePath()
