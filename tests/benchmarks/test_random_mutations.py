"""The rules that make mistakes, the draw, and which tests are near a module."""

from __future__ import annotations

import ast
import inspect
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from mutation_operators import RULES, drawn, mistakes_of
from random_mutations import (
    PACKAGE,
    LikelyFirst,
    NearestTests,
    Result,
    chosen_mistakes,
    core_files,
    equivalents,
    names_of,
    read_results,
    summary,
    waiting_names,
    write_results,
)

ROOT = Path(__file__).parents[2]
SOURCE = b'''def f(a: int, b: int = 2) -> list:
    """Text is left alone: 1 < 2."""
    if a < b and not (a == 3):
        print(a, b, end="")
    return g(a + b, -1, key=f"{a + 1}") if a else [h(b)]
'''
EXPECTED = {
    "other comparison": {"a <= b", "a != 3"},
    "other arithmetic": {"a - b", "1"},
    "other logic": {"a < b or not a == 3", "a == 3", "g(a + b, -1, key=f'{a + 1}') if not a else [h(b)]"},
    "other constant": {"3", "4", "2"},
    "dropped keyword": {"print(a, b)", "g(a + b, -1)"},
    "removed call": {"pass", "b"},
    "empty return": {"return []"},
    "exchanged arguments": {"print(b, a, end='')", "g(-1, a + b, key=f'{a + 1}')"},
}


def test_arguments_whose_order_does_not_matter_are_not_exchanged():
    assert not [one for one in mistakes_of("m.py", b"max(a, np.minimum(b, c))\n") if one.rule == "exchanged arguments"]


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_makes_its_mistakes(rule):
    texts = [one.new for one in mistakes_of("m.py", SOURCE) if one.rule == rule]
    found = {text[1:-1] if text.startswith("(") else text for text in texts}
    assert found == EXPECTED[rule]


def test_a_mistake_is_made_in_its_place_and_is_valid_code():
    for mistake in mistakes_of("m.py", SOURCE):
        changed = mistake.made(SOURCE)
        assert changed != SOURCE
        assert changed[: mistake.start] == SOURCE[: mistake.start]
        ast.parse(changed)


def test_the_draw_follows_from_the_seed_and_repeats_nothing():
    mistakes = mistakes_of("m.py", SOURCE)
    assert drawn(mistakes, 8, 1) == drawn(mistakes, 8, 1) != drawn(mistakes, 8, 2)
    assert sorted(drawn(mistakes, 99, 3)) == sorted(mistakes)


def test_a_mistake_that_is_left_out_or_another_place_in_the_file_moves_no_other_draw():
    mistakes = mistakes_of("m.py", SOURCE)
    first, *others = (one.name for one in drawn(mistakes, 99, 1))
    left = [one for one in mistakes_of("m.py", b"\n" + SOURCE) if one.name != first]
    order = [one.name for one in drawn(left, 99, 1)]
    for rule in RULES:
        assert [name for name in order if f", {rule}:" in name] == [name for name in others if f", {rule}:" in name]


def test_each_mistake_has_a_name_of_its_own():
    source = b"class A:\n    def f(self):\n        self.a = 0\n        self.b = 0\ndef g():\n    return 0\n"
    names = [one.name for one in mistakes_of("m.py", source) if one.rule == "other constant"]
    first = "m.py A.f, other constant: 0 -> (1)"
    assert names == [first, f"{first}, number 2", "m.py g, other constant: 0 -> (1)"]


def test_all_mistakes_in_the_core_are_valid_code():
    files = [ROOT / PACKAGE / name for name in ("learning/cutmix.py", "methods/tokens.py")]
    for file in files:
        source = file.read_bytes()
        for mistake in mistakes_of(file.name, source):
            ast.parse(mistake.made(source))


def test_tests_that_import_a_module_come_first():
    tests = NearestTests(ROOT)
    near = [Path(file).name for file in tests.nearest(f"{PACKAGE}.learning.labeling")]
    assert "test_labeling.py" in near[:3]
    assert "test_train_step.py" in near
    assert near.index("test_labeling.py") < near.index("test_train_step.py")
    assert Path(tests.nearest(f"{PACKAGE}.methods.names")[0]).name == "test_settings.py"


def test_quick_tests_come_first_then_those_that_name_the_place_whatever_the_suite_begins_with():
    def item(file: str, slow: bool, name: str = "test") -> SimpleNamespace:
        marks, find = {"slow"} if slow else set(), inspect.getsource  # any function: its source is looked at
        return SimpleNamespace(
            path=Path(file), get_closest_marker=lambda mark: mark if mark in marks else None, name=name, function=find
        )

    items = [item("near", True), item("far", True, "test[BCP]"), item("near", False), item("far", False)]
    items += [item("far", False, "test[BCP]")]
    LikelyFirst(["near", "far"], ["bcp", "getsource"]).pytest_collection_modifyitems(items)
    order = [(str(each.path), bool(each.get_closest_marker("slow")), each.name) for each in items]
    quick = [("far", False, "test[BCP]"), ("near", False, "test"), ("far", False, "test")]
    assert order == [*quick, ("far", True, "test[BCP]"), ("near", True, "test")]
    assert names_of("BCP.first_stage") == ["bcp", "first", "first_stage", "stage"]
    assert names_of("MeanTeacher._drop") == ["_drop", "drop", "mean", "meanteacher", "teacher"]
    assert names_of("") == []


def test_known_equivalents_are_still_in_the_code_and_are_not_drawn():
    files = core_files(ROOT / PACKAGE)
    names = {one.name for file in files for one in mistakes_of(file, (ROOT / PACKAGE / file).read_bytes())}
    assert equivalents().keys() <= names
    assert all(equivalents().values())
    assert not equivalents().keys() & {one.name for one in chosen_mistakes(ROOT / PACKAGE, files, 10**6, 0)}


def test_the_share_has_its_interval_and_the_survivors_are_named():
    first, second, *_ = mistakes_of("m.py", SOURCE)
    text = summary([Result(first, "test_a"), Result(second, None)])
    assert text.splitlines()[0] == "1 of 2 noticed: 50% (95 % interval 9% to 91%)"
    assert text.splitlines()[1].startswith(second.name)


def test_what_has_a_result_is_not_run_again_unless_asked():
    first, second, third = (SimpleNamespace(name=name) for name in "abc")
    known = {"a": "tests/test_it.py::test", "b": None}
    assert waiting_names([first, second, third], known, False) == {"c"}
    assert waiting_names([first, second, third], known, True) == {"b", "c"}


def test_results_are_kept_for_a_later_call(tmp_path):
    known = {"a": "test_a", "b": None}
    assert read_results(tmp_path / "out.json") == read_results(None) == {}
    write_results(None, known)
    write_results(tmp_path / "out.json", known)
    assert read_results(tmp_path / "out.json") == known
