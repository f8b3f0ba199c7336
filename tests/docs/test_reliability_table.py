"""The table of faults in docs/reliability.md: its rows are numbered without gaps and name existing tests."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLE = (ROOT / "docs" / "reliability.md").read_text()


def test_rows_are_numbered_without_gaps():
    assert [int(row) for row in re.findall(r"^\| (\d+) \|", TABLE, flags=re.MULTILINE)] == list(range(1, 41))


def test_every_row_names_tests_that_exist():
    trees = [ast.parse(file.read_text()) for file in (ROOT / "tests").rglob("test_*.py")]
    tests = {node.name for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)}
    rows = [line for line in TABLE.splitlines() if line.startswith("| ") and not line.endswith(" | shown by |")]
    named = {row: set(re.findall(r"`(test_\w+)`", row)) for row in rows if row.count("|") == 6}
    assert len(named) == 128
    assert all(named.values())
    assert set.union(*named.values()) <= tests
