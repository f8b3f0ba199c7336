"""``benchmarks/mutation_list.py`` against the code: what it changes and which tests it names is there."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from mutation_list import GROUPS, MUTATIONS, Mutation

ROOT = Path(__file__).parents[2]


def source_of(mutation: Mutation) -> str:
    """Text of the mutated module; the converters lie beside the package, into which they are installed."""
    folder = ROOT if mutation.file.startswith("dataset_conversion/") else ROOT / "nnunetv2_crossmatch"
    return (folder / mutation.file).read_text()


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mistake_changes_one_place_into_valid_code(name):
    mutation, source = MUTATIONS[name], source_of(MUTATIONS[name])
    assert source.count(mutation.old) == 1
    assert mutation.old != mutation.new
    ast.parse(source.replace(mutation.old, mutation.new))


def test_every_named_test_file_exists():
    assert not [one.tests for one in MUTATIONS.values() if not (ROOT / "tests" / one.tests).is_file()]


def test_no_two_mistakes_are_the_same():
    assert len(set(MUTATIONS.values())) == sum(map(len, GROUPS))
    assert len({(one.file, one.old, one.new) for one in MUTATIONS.values()}) == len(MUTATIONS)
