"""Which values and gradients are held in 16 bits a number (bfloat16): those that all their writers and readers can.

What one instruction writes and a much later one reads goes through memory, which takes longer than computing it where
few weights survive. Half as many bytes are half of that time. Products read whole numbers, which lie in local memory.
"""

from __future__ import annotations

from lthfunc.sparse.builder import Builder, FusedStep, Operation, Value

#: Places of an image from which what is held in 16 bits pays: fewer stay in a cache.
_LEAST_PLACES = 64


def hold_in_half(b: Builder) -> None:
    """Decide for all values of a builder whose operations were fused and not yet emitted."""
    for operation in b.operations:
        value, readers = operation.out, [each for each in b.operations if operation.out in each.inputs]
        if operation.host is not None or value in b.outputs or not readers or not _is_large(value):
            continue
        if operation.keeps_half and not _lies_local(operation, readers):
            # Both, since whoever zeroes a gradient where the value is not above zero reads one kind of numbers.
            value.buffer.half = value.half_gradient = value.needs and all(map(_shares_half, readers))
            continue
        if operation.writes_half and not operation.fused:
            value.buffer.half = all(each.reads_half and each.host is None for each in readers)
        if operation.takes_half and FusedStep.ADD not in operation.fused and len(readers) == 1:
            value.half_gradient = _gives_half(readers[0])


def _is_large(value: Value) -> bool:
    return value.buffer.height * value.buffer.width >= _LEAST_PLACES


def _lies_local(operation: Operation, readers: list[Operation]) -> bool:
    """Whether one reader alone has a value written, tile by tile, so that no memory holds it."""
    plain = operation.deferred and FusedStep.ADD not in operation.fused
    return plain and len(readers) == 1 and readers[0].reads_local


def _shares_half(reader: Operation) -> bool:
    if reader.host is not None:
        return reader.step is FusedStep.ADD and reader.host.keeps_half
    return reader.shares_half


def _gives_half(reader: Operation) -> bool:
    return reader.gives_half and reader.host is None
