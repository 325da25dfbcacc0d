"""The peephole pass: an operation becomes part of the one before it, which does it as it writes its value.

It goes through a network's operations in order. An operation is folded into the one that writes what it reads (its
host) where that one accepts such a step, nothing else reads the value in between, and the host does no such step or
later one yet: a host takes its steps in one order, whatever the network's is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lthfunc.sparse.builder import FusedStep, Operation, Value
from lthfunc.sparse.parts import join_parts


def fuse(operations: Sequence[Operation], outputs: Sequence[Value]) -> list[Value]:
    """Fold operations into their hosts: sets `fused` and `host`, and has readers read what hosts write.

    outputs: of the network. Returns the values that they are then.
    """
    join_parts(operations, outputs)
    readers = Counter(value for operation in operations for value in operation.inputs)
    readers.update(outputs)
    writers: dict[Value, Operation] = {}
    became: dict[Value, Value] = {}
    for number, operation in enumerate(operations):
        operation.inputs = [became.get(value, value) for value in operation.inputs]
        before = operations[:number]
        hosts = [writers[value] for value in operation.inputs if value in writers and readers[value] == 1]
        if operation.step is FusedStep.ADD:  # whoever still is to write a value can read the other one first
            hosts.sort(key=lambda host: not _is_pending(host, before))
        host = next((host for host in hosts if _fits(operation, host, before, writers)), None)
        if host is None:
            writers[operation.out] = operation
            continue
        assert operation.step is not None
        operation.host, host.fused[operation.step] = host, operation
        operation.inputs.remove(host.out)
        if operation.step is not FusedStep.MAXIMA:  # which are a value of their own, since gradients need both
            became[operation.out] = host.out
            readers[host.out] = readers[operation.out]
            host.out.needs |= operation.out.needs
            host.out.rectified |= operation.step is FusedStep.RECTIFY
    return [became.get(output, output) for output in outputs]


def _fits(operation: Operation, host: Operation, before: Sequence[Operation], writers: dict[Value, Operation]) -> bool:
    step = operation.step
    if step not in host.accepts or (host.fused and max(host.fused) >= step):
        return False
    if step is FusedStep.MAXIMA:
        return FusedStep.ADD not in host.fused
    if step is FusedStep.ADD and not host.deferred:
        # What is added must be there as the host writes: written before, and by nothing after it.
        (other,) = (value for value in operation.inputs if value is not host.out)
        writer = writers.get(other)
        after = before[before.index(host) + 1 :]
        return all(_is_silent(each) for each in after) and not (writer is not None and _is_pending(writer, before))
    return True


def _is_pending(operation: Operation, before: Sequence[Operation]) -> bool:
    """Whether an operation's value is still to be written: it is deferred, and nothing has read or changed it."""
    if not operation.deferred or FusedStep.ADD in operation.fused:
        return False
    return not any(operation.out in each.inputs for each in before)


def _is_silent(operation: Operation) -> bool:
    """Whether an operation adds no instruction where it stands."""
    return operation.host is not None and not (operation.step is FusedStep.ADD and operation.host.deferred)
