"""Tensors, streams, events and graphs of the pretended GPUs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

if TYPE_CHECKING:
    from pretended import Machine

_ROOT = str(Path(__file__).resolve().parent.parent)
#: What pretends, whose lines are nobody's calls.
_OWN = (__file__, str(Path(__file__).with_name("pretended.py")))
_ATEN = torch.ops.aten
#: Operations that read numbers on the host, or whose results have as many entries as the numbers say.
_WAITING = (
    _ATEN._local_scalar_dense.default, _ATEN.equal.default, _ATEN.nonzero.default, _ATEN.masked_select.default,
    _ATEN._unique2.default, _ATEN.unique_consecutive.default, _ATEN.unique_dim.default,
)  # fmt: skip


class OnDevice(Tensor):
    """A tensor of a pretended GPU; `kept` is its memory."""

    kept: Tensor

    @staticmethod
    def __new__(cls, kept: Tensor, device: torch.device) -> OnDevice:
        made: OnDevice = torch.Tensor._make_wrapper_subclass(
            cls,
            kept.shape,
            strides=kept.stride(),
            storage_offset=kept.storage_offset(),
            dtype=kept.dtype,
            device=device,
        )
        made.kept = kept
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _machine().dispatch(func, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """PyTorch's would copy the memory itself, before what is to be written there."""
        made: Any = self.detach().clone()
        if getattr(self, "_is_param", False):
            made = torch.nn.Parameter(made, requires_grad=self.requires_grad)
        memo[id(self)] = made
        return made

    def tolist(self) -> Any:
        """Which PyTorch itself doesn't do for subclasses."""
        return self.cpu().tolist()


class Stream:
    """Work that is still to be done, in order."""

    def __init__(self, device: Any = None) -> None:
        machine = _machine()
        self.device = torch.device(machine.kind, machine.current if device is None else torch.device(device).index or 0)
        self.waiting: list[Callable[[], object]] = []
        self.begun = 0
        self.graph: Graph | None = None

    def put(self, work: Callable[[], object]) -> None:
        """Do this after all that was put before; in a capture, whenever the graph is replayed."""
        (self.waiting if self.graph is None else self.graph.work).append(work)

    def run(self, upto: int | None = None) -> None:
        """Do the work, or the first so many pieces of it since the beginning."""
        # Whatever whoever waits is in the middle of (tracing with shapes alone, say), the work was put here before.
        with _machine().lock, _disable_current_modes():
            while self.waiting and (upto is None or self.begun < upto):
                self.begun += 1
                self.waiting.pop(0)()

    def synchronize(self) -> None:
        """Wait for all of it."""
        self.run()

    def wait_event(self, event: Event) -> None:
        """Go on after the event."""
        self.put(event.reach)

    def wait_stream(self, other: Stream) -> None:
        """Go on after what the other stream has to do now."""
        mark = Event()
        mark.record(other)
        self.wait_event(mark)


class Event:
    """A mark in a stream."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._at: tuple[Stream, int] | None = None

    def record(self, stream: Stream | None = None) -> None:
        """Mark where a stream stands: by default the current one of the current device."""
        stream = stream or _machine().stream(_machine().current)
        self._at = stream, stream.begun + len(stream.waiting)

    def reach(self) -> None:
        """Do all before the mark."""
        if self._at is not None:
            self._at[0].run(self._at[1])

    synchronize = reach

    def query(self) -> bool:
        """Whether the mark was passed."""
        return self._at is None or self._at[0].begun >= self._at[1]

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds to another mark, of which each piece of a stream's work takes one."""
        if self._at is None or end._at is None or not (self.query() and end.query()):
            raise RuntimeError("Both events must be recorded and completed before calculating elapsed time.")
        if self._at[0] is not end._at[0]:
            raise RuntimeError("marks of two streams have no work between them")
        return float(end._at[1] - self._at[1])


class Graph:
    """Captured work."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.work: list[Callable[[], object]] = []

    def replay(self) -> None:
        """Put it into the current stream of the current device, as CUDA does."""
        stream = _machine().stream(_machine().current)
        for work in self.work:
            stream.put(work)


class _Kept:
    """Stands for a tensor of a device among arguments."""

    def __init__(self, memory: Tensor, owner: OnDevice) -> None:
        self.memory, self.owner = memory, owner


def _mapped(kind: Any, function: Callable[[Any], Any], tree: Any) -> Any:
    """An operation's arguments or results, each of a kind through a function; faster than trees of any kind are."""
    if isinstance(tree, kind):
        return function(tree)
    if isinstance(tree, (tuple, list)):
        return type(tree)([_mapped(kind, function, each) for each in tree])
    if isinstance(tree, dict):
        return {key: _mapped(kind, function, each) for key, each in tree.items()}
    return tree


def _argument(schema: Any, args: Any, kwargs: Any, number: int) -> Any:
    return args[number] if number < len(args) else kwargs[schema.arguments[number].name]


def _on_meta(tree: Any) -> Any:
    def meta(tensor: Tensor) -> Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")

    return _mapped(Tensor, meta, tree)


def _line() -> str:
    """Where in this project the present call came from."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_ROOT) and file not in _OWN and "/.venv/" not in file:
            return f"{file[len(_ROOT) + 1 :]}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


_here: list[Machine] = []


def _machine() -> Machine:
    return _here[-1]
