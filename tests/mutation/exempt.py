"""What mutants leave out: words for people, types, assertions, and what only a GPU runs or notices."""

from __future__ import annotations

import ast
from collections.abc import Iterator

#: What makes words for people of its arguments: no number depends on them.
WORDS = {"invalid", "unknown", "print", "warn", "getLogger", "TypeVar", "NewType"}
#: Left away, these give a type error at once or the same numbers in another type or place of memory.
KEPT = {
    "int", "float", "bool", "str", "list", "tuple", "dict", "set", "frozenset", "len", "range", "enumerate", "zip",
    "iter", "next", "super", "type", "repr", "id", "hash", "partial", "items", "keys", "values", "item", "tolist",
    "contiguous", "cpu", "numel", "_asdict", "getattr", "fields", "Path", "cast", "__init__", "close", "whole_numbers",
    "_decided",  # an assertion that something is there
}  # fmt: skip
#: These do nothing on a CPU.
ON_GPUS = {"synchronize"}
#: Where something lies: but for accelerators, it lies on the CPU anyway.
PLACES = {"device", "pin_memory", "non_blocking"}
#: What functions are taken from.
MODULES = {"torch", "math", "F"}
#: Random numbers from another seed are as good ones.
SEEDED = {"init", "all_seeded", "counter_key"}
#: A stream of random numbers by another name is as good a stream.
STREAMS = {"key", "generator", "permutation", "counter_key", "random_scores", "samples"}


def left_out(node: ast.stmt, where: str, line: str) -> bool:
    """Statements that no number depends on, or that only a GPU runs."""
    if isinstance(node, (ast.Import, ast.ImportFrom, ast.Assert, ast.Global, ast.Nonlocal)):
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True  # a docstring
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return True
    if isinstance(node, ast.Assign) and not where:
        union = isinstance(node.value, ast.BinOp) and isinstance(node.value.right, ast.Subscript)
        if union or isinstance(node.value, ast.Subscript) or "__all__" in ast.unparse(node.targets[0]):
            return True  # names of types
    if isinstance(node, ast.FunctionDef) and _is_a_gpus(node):
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and called(node.value) in ON_GPUS:
        return True
    if "no mutate" in line:
        return True
    heads: list[ast.AST] = [node.test] if isinstance(node, (ast.If, ast.While)) else []
    if not hasattr(node, "body"):
        heads.append(node)
    return any("cuda" in ast.unparse(head).lower() for head in heads)


def children(node: ast.AST) -> Iterator[ast.AST]:
    """What is below a node, without annotations, decorators, and words for people."""
    if isinstance(node, ast.JoinedStr):
        return
    if isinstance(node, ast.Call) and speaks(node):
        return
    if isinstance(node, ast.Raise):
        return
    if isinstance(node, ast.keyword) and asserts(node):
        return
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "bases", "ctx", "ops", "op", "type_params"):
            continue
        if isinstance(node, ast.ExceptHandler) and name == "type":
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not (isinstance(node, ast.Call) and _is_a_stream(node, child)):
                yield child


def _is_a_stream(call: ast.Call, argument: ast.AST) -> bool:
    if not isinstance(argument, ast.Constant):
        return False
    return called(call) in SEEDED or (called(call) in STREAMS and isinstance(argument.value, str))


def called(node: ast.Call) -> str:
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def speaks(node: ast.Call) -> bool:
    name = called(node)
    return name in WORDS or name.endswith(("Error", "Warning")) or "logging" in ast.unparse(node.func)


def root_of(node: ast.expr) -> str:
    """The name that a dotted name begins with; nothing of another expression."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def asserts(keyword: ast.keyword) -> bool:
    """Whether a zip's strict, which is an assertion."""
    return keyword.arg == "strict" and isinstance(keyword.value, ast.Constant)


def is_words(node: ast.AST) -> bool:
    """Text with a space in it."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    return any(isinstance(part, ast.Constant) and isinstance(part.value, str) and " " in part.value for part in parts)


def _is_a_gpus(node: ast.FunctionDef) -> bool:
    """Whether a function does something with CUDA whatever it is given."""
    heads = [each.items[0].context_expr if isinstance(each, ast.With) else each for each in node.body]
    return any(
        ast.unparse(head).partition(" = ")[2 if isinstance(head, ast.Assign) else 0].startswith("torch.cuda.")
        for head in heads
    )
