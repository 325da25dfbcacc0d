"""A pretended machine with GPUs: tensors that say they lie on one of them, and streams that run as late as they may.

An operation on such tensors is put into the current stream of their device, and runs when somebody waits for it: for
the stream, an event in it, or a number on the host. So a copy that nobody waits for reads whatever lies in its source
by then, a graph that was captured on another device's stream is empty, and a program that is right here is right on a
device that is fast or slow. Mixing devices is an error; waits of the host are counted by the line that waits.
"""

from __future__ import annotations

import functools
import itertools
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from pretended_parts import (
    _ATEN,
    _WAITING,
    Event,
    Graph,
    OnDevice,
    Stream,
    _argument,
    _here,
    _Kept,
    _line,
    _machine,
    _mapped,
    _on_meta,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Machine(TorchDispatchMode):
    """The pretended GPUs. waits: how often the host waited, by line; copies: from and to the host, by line.

    captures: of each graph the pieces of its work, and its mode; pools: the graphs that are left in each memory, which
    takes no new ones once none is, as CUDA's allocator has it; generators: states that devices' were set to.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kind = kind
        self.lock = threading.RLock()
        self.current = 0
        self.waits: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        self.captures: list[tuple[int, str]] = []
        self.pools: dict[Any, weakref.WeakSet[Graph]] = {}
        self.generators: list[tuple[str, Tensor]] = []
        self._pinned: set[int] = set()
        self._streams: dict[int, Stream] = {}

    def stream(self, device: int) -> Stream:
        """The current stream of a device."""
        if device not in self._streams:
            self._streams[device] = Stream(f"{self.kind}:{device}")
        return self._streams[device]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.dispatch(func, args, kwargs or {})

    def dispatch(self, func: Any, args: Any, kwargs: Any) -> Any:
        """An operation, where its tensors are."""
        tensors: list[Tensor] = []
        _mapped(Tensor, tensors.append, (args, kwargs))
        there = {tensor.device for tensor in tensors if isinstance(tensor, OnDevice)}
        named = kwargs.get("device")
        wanted: Any = None if named is None else torch.device(named)
        if wanted is not None and wanted.type == self.kind and wanted.index is None:
            wanted = torch.device(self.kind, self.current)
        pinned = bool(kwargs.pop("pin_memory", False))
        if func in (_ATEN._to_copy.default, _ATEN.copy_.default) and (there or (wanted and wanted.type == self.kind)):
            return self._copy(func, args, kwargs, wanted)
        if not there and (wanted is None or wanted.type != self.kind):
            made = func(*args, **kwargs)
            if pinned:
                self._pinned.add(made.untyped_storage().data_ptr())
            return made
        if wanted is not None:
            there.add(wanted)
            kwargs = {**kwargs, "device": torch.device("cpu")}
        hosts = [tensor for tensor in tensors if not isinstance(tensor, OnDevice) and tensor.ndim > 0]
        # Indices may lie on the host; CUDA copies them, and waits.
        if len(there) > 1 or (hosts and func is not _ATEN.index.Tensor):
            places = sorted({str(tensor.device) for tensor in tensors} | {str(device) for device in there})
            raise RuntimeError(f"{func} mixes devices: {', '.join(places)}")
        (device,) = there
        return self._launch(func, args, kwargs, device)

    def _launch(self, func: Any, args: Any, kwargs: Any, device: torch.device) -> Any:
        stream = self.stream(device.index)
        args, kwargs = _mapped(OnDevice, lambda tensor: _Kept(tensor.kept, tensor), (args, kwargs))
        args, kwargs = _mapped(Tensor, lambda tensor: tensor.clone(), (args, kwargs))  # a host's numbers, now
        bare = _mapped(_Kept, lambda each: each.memory, (args, kwargs))
        schema = func._schema
        written = [
            _argument(schema, args, kwargs, number)
            for number, argument in enumerate(schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        if written:
            stream.put(lambda: func(*bare[0], **bare[1]))
            owners = [each.owner for each in written]
            return owners[0] if len(schema.returns) == 1 else tuple(owners) if schema.returns else None
        if any(each.alias_info is not None for each in schema.returns):  # a view reads nothing
            return _mapped(Tensor, lambda part: OnDevice(part, device), func(*bare[0], **bare[1]))
        chosen = func is _ATEN.index.Tensor and any(
            isinstance(index, _Kept) and index.memory.dtype == torch.bool for index in args[1]
        )
        if func in _WAITING or chosen:
            self._wait(stream)
            found = func(*bare[0], **bare[1])
            return _mapped(Tensor, lambda part: OnDevice(part, device), found)
        shapes = func(*_on_meta(bare[0]), **_on_meta({**bare[1], **({"device": "meta"} if "device" in kwargs else {})}))
        results = _mapped(Tensor, lambda made: torch.empty_strided(made.shape, made.stride(), dtype=made.dtype), shapes)

        def work() -> None:
            found: list[Tensor] = []
            _mapped(Tensor, found.append, func(*bare[0], **bare[1]))
            rooms: list[Tensor] = []
            _mapped(Tensor, rooms.append, results)
            for room, value in zip(rooms, found, strict=True):
                if value.numel():  # some kernels of a CPU leave out what only a gradient would read
                    room.copy_(value)

        stream.put(work)
        return _mapped(Tensor, lambda room: OnDevice(room, device), results)

    def _copy(self, func: Any, args: Any, kwargs: Any, wanted: torch.device | None) -> Any:
        """Between host and device, or within a device; between two devices only where both are named."""
        into = func is _ATEN.copy_.default
        source = args[1] if into else args[0]
        late = bool(kwargs.pop("non_blocking", args[2] if into and len(args) > 2 else False))
        target = args[0].device if into else (wanted or source.device)
        if source.device == target:
            kwargs.pop("device", None)
            return self._launch(func, args[:2] if into else args, kwargs, target)
        self.copies[_line()] += 1
        if target.type == "cpu":
            self._wait(self.stream(source.device.index))
            if into:
                return func(args[0], source.kept)
            return func(source.kept, **{**kwargs, "device": target})
        if source.device.type == self.kind:
            self.stream(source.device.index).run()
            source = source.kept.clone()
        elif not (late and source.untyped_storage().data_ptr() in self._pinned):
            source = source.clone()  # staged by the driver as the call returns
        room = args[0].kept if into else torch.empty_like(source, dtype=kwargs.get("dtype") or source.dtype)
        self.stream(target.index).put(lambda: room.copy_(source))
        return args[0] if into else OnDevice(room, target)

    def _wait(self, stream: Stream) -> None:
        if stream.graph is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.waits[_line()] += 1
        stream.run()


class _Device:
    def __init__(self, device: Any) -> None:
        index = device if isinstance(device, int) else torch.device(device).index
        self._index = _machine().current if index is None else index

    def __enter__(self) -> None:
        self._before, _machine().current = _machine().current, self._index

    def __exit__(self, *exception: object) -> None:
        _machine().current = self._before


@contextmanager
def _on(stream: Stream) -> Iterator[None]:
    machine, index = _machine(), stream.device.index
    before, device = machine.stream(index), machine.current
    machine._streams[index], machine.current = stream, index
    try:
        yield
    finally:
        machine._streams[index], machine.current = before, device


@contextmanager
def _capture(graph: Graph, pool: Any = None, stream: Stream | None = None, **settings: str) -> Iterator[None]:
    machine = _machine()
    for each in list(machine._streams.values()):
        if each.device.index == machine.current:
            each.run()
    pool = object() if pool is None else pool  # one of its own
    if pool in machine.pools and not machine.pools[pool]:
        raise RuntimeError("it->second->use_count > 0 INTERNAL ASSERT FAILED")
    machine.pools.setdefault(pool, weakref.WeakSet()).add(graph)
    stream = stream or Stream()
    with _on(stream):
        stream.graph = graph
        try:
            yield
        finally:
            stream.graph = None
    machine.captures.append((len(graph.work), settings.get("capture_error_mode", "global")))


@contextmanager
def pretended(kind: str) -> Iterator[Machine]:
    """A machine whose devices are `kind:0`, `kind:1`, …, until this ends."""
    machine = Machine(kind)
    _here.append(machine)
    made = torch.tensor

    def tensor(data: Any, *, device: Any = None, **settings: Any) -> Tensor:
        """torch.tensor asks the device for memory past any mode; numbers come from the host there too."""
        there = made(data, **settings)
        return there if device is None else there.to(device)

    try:
        with machine, pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "tensor", tensor)
            yield machine
    finally:
        _here.pop()


@functools.cache
def accelerator() -> str:
    """The name of PyTorch's device for others' backends, on which networks can be differentiated without any GPU."""
    from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

    class Backend(_DummyBackendModule):
        """The device stays known to PyTorch, and `torch.random.fork_rng` saves the generator of each that is."""

        def get_rng_state(self, device: Any = None) -> Tensor:
            return torch.zeros(0, dtype=torch.uint8)

        def set_rng_state(self, state: Tensor, device: Any = None) -> None:
            pass

    _setup_privateuseone_for_python_backend("pretended", Backend())
    return "pretended"


@contextmanager
def pretended_gpus(patch: pytest.MonkeyPatch, gpus: int = 2) -> Iterator[Machine]:
    """A machine on which `cuda:0`, `cuda:1`, … can be named, and torch.cuda speaks of it, until this ends.

    PyTorch asks a real driver before it differentiates: for that there is `accelerator`.
    """
    with pretended("cuda") as machine:

        def index(device: Any) -> int:
            if device is None:
                return machine.current
            found = device if isinstance(device, int) else torch.device(device).index
            return machine.current if found is None else found

        def synchronize(device: Any = None) -> None:
            machine.waits[_line()] += 1
            machine.stream(index(device)).run()

        handles = itertools.count(1)
        stands = {
            "_lazy_init": lambda: None, "is_available": lambda: True, "device_count": lambda: gpus, "device": _Device,
            "current_device": lambda: machine.current, "Stream": Stream, "Event": Event, "stream": _on,
            "set_device": lambda device: setattr(machine, "current", index(device)), "CUDAGraph": Graph,
            "graph": _capture, "current_stream": lambda device=None: machine.stream(index(device)),
            "synchronize": synchronize, "graph_pool_handle": lambda: (0, next(handles)), "empty_cache": lambda: None,
            "get_device_name": lambda device=None: "a pretended GPU",
            "mem_get_info": lambda device=None: (64 * 2**30, 80 * 2**30),
            "get_rng_state": lambda device=None: torch.zeros(0, dtype=torch.uint8),
            "set_rng_state": lambda state, device=None: machine.generators.append((str(device), state)),
            "get_device_capability": lambda device=None: (9, 0),
        }  # fmt: skip
        for name, value in stands.items():
            patch.setattr(torch.cuda, name, value)
        torch._C._ensureCUDADeviceGuardSet()
        yield machine
