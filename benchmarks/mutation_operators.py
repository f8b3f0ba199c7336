"""Mistakes that can be made in a Python file by rule: what each rule changes, found by ``ast`` and changed in the text.

Limit: one mistake at a time. Left alone are strings, annotations, decorators, the insides of f-strings, and
``if __name__ == "__main__":``.
"""

from __future__ import annotations

import ast
import copy
import random
import re
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

NOT_ENTERED = ("annotation", "returns", "decorator_list")  # fields of a node
COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.MatMult: ast.Mult,
}  # fmt: skip
EMPTY = {"bool": "False", "int": "0", "float": "0.0", "str": "''", "list": "[]", "dict": "{}", "tuple": "()"}


class Mistake(NamedTuple):
    """``new`` instead of the bytes ``start`` to ``end`` of ``file``, which is relative to the package.

    Attributes:
        inside: names of the class and the function around it.
        number: counts those of a file with the same texts in the same place.
    """

    file: str
    inside: str
    rule: str
    line: int
    start: int
    end: int
    old: str
    new: str
    number: int = 1

    @property
    def name(self) -> str:
        """File, function, rule and texts, without the line, which moves when the file is changed elsewhere."""
        old, new = (" ".join(text.split()) for text in (self.old, self.new))
        place = f"{self.file} {self.inside}".rstrip()
        return f"{place}, {self.rule}: {old} -> {new}" + (f", number {self.number}" if self.number > 1 else "")

    def made(self, source: bytes) -> bytes:
        """``source`` with the mistake."""
        return source[: self.start] + self.new.encode() + source[self.end :]


def other_comparison(node: Any) -> Iterator[ast.AST]:
    """``<`` to ``<=``, ``==`` to ``!=``, ``in`` to ``not in``, and back."""
    if isinstance(node, ast.Compare):
        for i, operator in enumerate(node.ops):
            yield _changed(node, "ops", [*node.ops[:i], COMPARISONS[type(operator)](), *node.ops[i + 1 :]])


def other_arithmetic(node: Any) -> Iterator[ast.AST]:
    """``+`` to ``-``, ``*`` to ``/``, ``&`` to ``|``, and back; a sign dropped. Texts and paths are left alone."""
    if isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in ARITHMETIC and not _has_text(node):
        yield _changed(node, "op", ARITHMETIC[type(node.op)]())
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Invert)):
        yield node.operand


def other_logic(node: Any) -> Iterator[ast.AST]:
    """``and`` to ``or`` and back, ``not`` dropped, a condition negated."""
    if isinstance(node, ast.BoolOp):
        yield _changed(node, "op", ast.And() if isinstance(node.op, ast.Or) else ast.Or())
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand
    if isinstance(node, ast.IfExp):
        yield _changed(node, "test", ast.UnaryOp(ast.Not(), node.test))


def other_constant(node: Any) -> Iterator[ast.AST]:
    """A number one larger, a truth value negated."""
    if isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
        yield ast.Constant(not node.value if isinstance(node.value, bool) else node.value + 1)


def dropped_keyword(node: Any) -> Iterator[ast.AST]:
    """A call without one of its keywords; without a positional argument it would mostly just fail."""
    if isinstance(node, ast.Call):
        for i in range(len(node.keywords)):
            yield _changed(node, "keywords", [*node.keywords[:i], *node.keywords[i + 1 :]])


def removed_call(node: Any) -> Iterator[ast.AST]:
    """A statement that only calls becomes ``pass``; ``f(x)`` becomes ``x``, ``x.y.f()`` becomes ``x.y``."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield ast.Pass()
    if isinstance(node, ast.Call) and len(node.args) == 1 and not isinstance(node.args[0], ast.Starred):
        yield node.args[0]
    method = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    if method and not isinstance(node.func.value, ast.Name):
        yield node.func.value


def empty_return(node: Any) -> Iterator[ast.AST]:
    """A ``return`` gives None, or the empty value of the type that is annotated."""
    if isinstance(node, ast.Return) and node.value is not None and ast.unparse(node.value) != node.empty:
        yield ast.parse(f"return {node.empty}").body[0]


SYMMETRIC = {"max", "min", "maximum", "minimum", "equal"}
"""Functions and methods whose arguments may change places."""


def exchanged_arguments(node: Any) -> Iterator[ast.AST]:
    """Two neighbouring positional arguments of a call change places, where the order matters."""
    if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) not in SYMMETRIC:
        for i, (first, second) in enumerate(zip(node.args, node.args[1:], strict=False)):
            if not any(isinstance(one, ast.Starred) for one in (first, second)):
                yield _changed(node, "args", [*node.args[:i], second, first, *node.args[i + 2 :]])


RULES: dict[str, Callable[[ast.AST], Iterator[ast.AST]]] = {
    "other comparison": other_comparison,
    "other arithmetic": other_arithmetic,
    "other logic": other_logic,
    "other constant": other_constant,
    "dropped keyword": dropped_keyword,
    "removed call": removed_call,
    "empty return": empty_return,
    "exchanged arguments": exchanged_arguments,
}


def mistakes_of(file: str, source: bytes) -> list[Mistake]:
    """All mistakes that the rules can make in one file."""
    starts = [0, *(match.end() for match in re.finditer(b"\n", source))]
    nodes, seen = list(_nodes(ast.parse(source))), Counter[str]()
    found = []
    for rule, change in RULES.items():
        for mistake in (_mistake(file, rule, source, starts, node, other) for node in nodes for other in change(node)):
            seen[mistake.name] += 1
            found.append(mistake._replace(number=seen[mistake.name]))
    return found


def drawn(mistakes: Sequence[Mistake], count: int, seed: int) -> list[Mistake]:
    """``count`` different ones: a rule at random, then one of its places; without one of them the others stay."""
    generator = random.Random(seed)
    places = {rule: deque(shuffled([one for one in mistakes if one.rule == rule], seed)) for rule in RULES}
    chosen: list[Mistake] = []
    while len(chosen) < min(count, len(mistakes)):
        if left := places[generator.choice([*RULES])]:
            chosen.append(left.popleft())
    return chosen


def shuffled(mistakes: Sequence[Mistake], seed: int) -> list[Mistake]:
    """In an order that follows from the seed and their names alone, so that a change of the code moves no other."""
    return sorted(mistakes, key=lambda one: sha256(f"{seed} {one.name}".encode()).digest())


def _mistake(file: str, rule: str, source: bytes, starts: Sequence[int], node: Any, other: ast.AST) -> Mistake:
    start, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
    text = ast.unparse(ast.fix_missing_locations(other))
    new = text if isinstance(node, ast.stmt) else f"({text})"
    return Mistake(file, node.inside, rule, node.lineno, start, end, source[start:end].decode(), new)


def _nodes(node: Any, inside: str = "", empty: str = "None") -> Iterator[ast.AST]:
    """``node`` and all below it that may be changed.

    Each gets the names of the class and the function around it, and what that function returns when it is empty.
    """
    if isinstance(node, ast.JoinedStr) or _is_main_guard(node):
        return
    if isinstance(node, ast.FunctionDef):
        named = re.match(r"\w+", ast.unparse(node.returns)) if node.returns else None
        empty = EMPTY.get(named.group().lower() if named else "", "None")
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        inside = f"{inside}.{node.name}".lstrip(".")
    node.inside, node.empty = inside, empty
    if hasattr(node, "lineno"):
        yield node
    for field, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and field not in NOT_ENTERED:
                yield from _nodes(child, inside, empty)


def _is_main_guard(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)


def _has_text(node: ast.AST) -> bool:
    """Whether an operand is a text, where another operator would just fail."""
    parts = [getattr(node, name, None) for name in ("left", "right", "value")]
    texts = [isinstance(part, ast.Constant) and isinstance(part.value, str) for part in parts]
    return any(texts) or any(isinstance(part, ast.JoinedStr) for part in parts)


def _changed(node: Any, field: str, value: object) -> Any:
    """A shallow copy of ``node`` with another value of one field."""
    other = copy.copy(node)
    setattr(other, field, value)
    return other
