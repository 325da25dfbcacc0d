"""Small changes of source files, one at a time, as a tired programmer might make them.

The operators are those of mutmut and cosmic-ray, with three more that numerical code asks for: an operand of a
condition left out, two arguments swapped, a function or method of one value left away (`x.abs()` as `x`).
"""

from __future__ import annotations

import ast
import copy
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from exempt import KEPT, MODULES, PLACES, STREAMS, asserts, called, children, is_words, left_out, root_of, speaks

_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.MatMult: ast.Mult,
}
#: The order of their first two arguments tells nothing.
_SYMMETRIC = {"max", "min", "maximum", "minimum", "isinstance", "cast", "transpose", "equal", "gradient_times_weight"}


class Mutant(NamedTuple):
    """file: from the root on. where: the function's name. code: the line it begins on. change: in words, old → new.

    first, last: lines of the statement. start, end: bytes of the file that `text` takes the place of. runs: what a test
    must have run of it, "line", "function" (a default) or "file" (what is done as the file is imported).
    """

    name: str
    file: str
    where: str
    code: str
    change: str
    first: int
    last: int
    start: int
    end: int
    text: str
    runs: str

    def applied(self, source: bytes) -> bytes:
        """The file with the change."""
        return source[: self.start] + self.text.encode() + source[self.end :]


class _Source:
    """A file, and where its nodes lie in it."""

    def __init__(self, data: bytes) -> None:
        self.data, self.lines, self.begins = data, data.splitlines(keepends=True), [0]
        for line in self.lines:
            self.begins.append(self.begins[-1] + len(line))

    def span(self, node: Any) -> tuple[int, int]:
        """Its first byte, and the one after its last."""
        return self.begins[node.lineno - 1] + node.col_offset, self.begins[node.end_lineno - 1] + node.end_col_offset

    def text(self, node: ast.AST) -> str:
        """As it is written."""
        start, end = self.span(node)
        return self.data[start:end].decode()


class _Place(NamedTuple):
    where: str
    statement: ast.stmt | None
    runs: str = "file"


def mutants_of(root: Path, file: str) -> list[Mutant]:
    """All of a file, in order; none twice, and none that is what was there."""
    source = _Source((root / file).read_bytes())
    tree = ast.parse(source.data)
    found, seen, times = [], set[tuple[int, int, str]](), dict[str, int]()
    node: Any
    for node, place, new, change in _changes(tree, _Place("", None), source):
        start, end = source.span(node)
        statement = place.statement
        assert statement is not None
        last = _header_end(statement)
        code = source.lines[node.lineno - 1].decode().strip()
        mutant = Mutant(
            "", file, place.where, code, change, statement.lineno, last, start, end, new,
            "function" if isinstance(statement, ast.FunctionDef) and place.runs == "line" else place.runs,
        )  # fmt: skip
        undone = isinstance(statement, ast.Expr) and node is statement.value and "(…)" not in change
        if undone and " without " in change:  # as much as leaving the whole statement out
            continue
        if (start, end, new) in seen or new.strip("()") == ast.unparse(node).strip("()"):
            continue
        seen.add((start, end, new))
        about = "\n".join((file, place.where, code, change))
        times[about] = times.get(about, 0) + 1
        name = hashlib.blake2b(f"{about}\n{times[about]}".encode(), digest_size=6).hexdigest()
        found.append(mutant._replace(name=name))
    return found


def _header_end(statement: ast.stmt) -> int:
    body = getattr(statement, "body", None)
    return body[0].lineno - 1 if isinstance(body, list) and body else statement.end_lineno or statement.lineno


def _changes(node: ast.AST, place: _Place, source: _Source) -> Iterator[tuple[ast.AST, _Place, str, str]]:
    """(node, where it is, the text that takes its place, what that changes), of a node and all below it."""
    if isinstance(node, ast.stmt):
        if left_out(node, place.where, source.lines[node.lineno - 1].decode()):
            return
        place = place._replace(statement=node)
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        runs = "line" if isinstance(node, ast.FunctionDef) else "file"
        place = place._replace(where=f"{place.where}.{node.name}".lstrip("."), runs=runs)
    if place.statement is not None:
        for new, change in _of(node, source):
            yield node, place, new, change
    for child in children(node):
        yield from _changes(child, place, source)


def _with(node: ast.AST, **fields: object) -> str:
    other = copy.copy(node)
    for name, value in fields.items():
        setattr(other, name, value)
    return ast.unparse(other)


def _of(node: ast.AST, source: _Source) -> Iterator[tuple[str, str]]:
    """(new text, what changes) of one node."""
    old = " ".join(source.text(node).split()) if isinstance(node, (ast.expr, ast.stmt)) else ""

    def made(new: str) -> tuple[str, str]:
        short = f"{old[:60]}{'…' if len(old) > 60 else ''} → {new[:60]}{'…' if len(new) > 60 else ''}"
        return (f"({new})" if isinstance(node, ast.expr) else new), short

    if isinstance(node, ast.Compare):
        for place, op in enumerate(node.ops):
            for other in _COMPARISONS[type(op)]:
                yield made(_with(node, ops=[*node.ops[:place], other(), *node.ops[place + 1 :]]))
    elif isinstance(node, ast.BoolOp):
        yield made(_with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And()))
        for place in range(len(node.values)):
            rest = [*node.values[:place], *node.values[place + 1 :]]
            yield made(ast.unparse(rest[0]) if len(rest) == 1 else _with(node, values=rest))
    elif isinstance(node, ast.BinOp):
        yield made(_with(node, op=_OPERATORS[type(node.op)]()))
    elif isinstance(node, ast.UnaryOp):
        yield made(ast.unparse(node.operand))
    elif isinstance(node, ast.Constant):
        if (value := _other(node.value)) is not None:
            yield made(repr(value))
    elif isinstance(node, ast.JoinedStr):
        if not is_words(node):
            yield made(repr("XX"))
    elif isinstance(node, ast.Slice):
        for end in ("lower", "upper", "step"):
            if getattr(node, end) is not None:
                new = _with(node, **{end: None})
                yield new, made(new)[1]
    elif isinstance(node, ast.Call) and not speaks(node):
        for new, change in _calls(node):
            yield made(new)[0], change
    elif isinstance(node, ast.IfExp):
        words = is_words(node.body) and is_words(node.orelse)
        if not isinstance(node.test, (ast.Compare, ast.UnaryOp)) and not words:
            yield made(_with(node, body=node.orelse, orelse=node.body))
    elif isinstance(node, ast.AugAssign):
        yield made(_with(node, op=_OPERATORS[type(node.op)]()))
    elif isinstance(node, ast.Continue):
        yield made("break")
    elif isinstance(node, (ast.Break, ast.Raise)):
        yield made("continue" if isinstance(node, ast.Break) else "pass")
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and not speaks(node.value):
        yield made("pass")


def _calls(node: ast.Call) -> Iterator[tuple[str, str]]:
    name, arguments = called(node), node.args
    for place, keyword in enumerate(node.keywords):
        if keyword.arg is not None and not asserts(keyword) and keyword.arg not in PLACES:
            rest = [*node.keywords[:place], *node.keywords[place + 1 :]]
            yield _with(node, keywords=rest), f"{name}(…) without {ast.unparse(keyword)}"
    starred = any(isinstance(each, ast.Starred) for each in arguments)
    stream = name in STREAMS and (name == "key" or any(isinstance(each, ast.Constant) for each in arguments[:2]))
    if len(arguments) > 1 and not starred and name not in _SYMMETRIC and not stream:
        first, second = map(ast.unparse, arguments[:2])
        yield _with(node, args=[arguments[1], arguments[0], *arguments[2:]]), f"{name}({first}, {second}), swapped"
    if name in KEPT or name[:1].isupper() or node.keywords or starred:
        return
    if not arguments and isinstance(node.func, ast.Attribute):
        new = ast.unparse(node.func.value)
        if new.partition(".")[0] not in MODULES:
            yield new, f"{new} without .{name}()"
    elif len(arguments) == 1:
        of_value = isinstance(node.func, ast.Name) or (root_of(node.func) in MODULES)
        if of_value and not isinstance(arguments[0], ast.GeneratorExp):
            new = ast.unparse(arguments[0])
            yield new, f"{new} without {name}"


def _other(value: object) -> object:
    """A neighbour of a constant; words with spaces are for people and stay."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 2 if value else 1.0
    if isinstance(value, str) and value and " " not in value:
        return value + "XX"
    return None
