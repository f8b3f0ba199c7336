"""The documents agree with the code: settings, trainer names, links, commands and flags."""

from __future__ import annotations

import configparser
import json
import os
import re
import runpy
import shlex
import subprocess
from dataclasses import fields
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import command_server
import pytest

from benchmarks.protocol.tasks import TASKS
from nnunetv2_crossmatch import __version__
from nnunetv2_crossmatch.methods.fixmatch import FixMatch
from nnunetv2_crossmatch.methods.method import Method
from nnunetv2_crossmatch.methods.names import METHODS, settings_from_name

ROOT = Path(__file__).parents[2]
OURS = "|".join(method.Settings.trainer for method in METHODS)
AT_THE_ROOT = ("README", "CHANGELOG", "CONTRIBUTING", "SECURITY")
DOCUMENTS = [*(ROOT / f"{name}.md" for name in AT_THE_ROOT), *sorted((ROOT / "docs").rglob("*.md"))]


def table_row(setting) -> str:
    meta = setting.metadata
    if setting.name == "epochs":
        tokens = "`<n>epochs`"
    elif meta["choices"]:
        tokens = ", ".join(f"`{meta['token']}{choice}`" for choice in meta["choices"])
    else:
        tokens = f"`{meta['token']}{'<n>' if meta['kind'] is int else '<x>'}`"
    default = "from the data" if setting.default is None else setting.default
    return f"| {tokens} | {default} | {meta['meaning']} | {meta['source']} |"


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_every_setting_of_a_method_stands_in_a_table(method):
    rows = (ROOT / "docs" / "settings.md").read_text().splitlines()
    assert not [row for row in map(table_row, fields(method.Settings)) if row not in rows]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_trainer_names_in_documents_are_valid(document):
    for name in set(re.findall(rf"(?:{OURS})(?:_[A-Za-z0-9]+)*", document.read_text())):
        assert settings_from_name(name)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_between_documents_are_valid(document):
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", document.read_text()):
        if "://" not in target:
            file = document.parent / target if target else document
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), f"{target}#{anchor}"


def test_citation_and_changelog_are_of_this_version():
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.search(
        rf"^## \[{re.escape(__version__)}\]|to be {re.escape(__version__)},", (ROOT / "CHANGELOG.md").read_text(), re.M
    )


def anchors(document: Path) -> set[str]:
    """Anchors of the headings of ``document``, as GitHub and the site make them."""
    titles = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_page_is_in_the_navigation_of_the_site():
    """README is its home; the other documents at the root have pages of their own."""
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1]
    pages = [file.relative_to(ROOT / "docs").as_posix() for file in (ROOT / "docs").rglob("*.md")]
    pages += ["index.md", *(f"{name.lower()}.md" for name in AT_THE_ROOT if name != "README")]
    assert sorted(re.findall(r"\S+\.md$", navigation, re.MULTILINE)) == sorted(pages)


@pytest.mark.parametrize(
    ("source", "text", "turned"),
    [
        ("README.md", "[a](docs/methods/index.md#b)", "[a](methods/index.md#b)"),
        ("docs/methods/cps.md", "[a](../../SECURITY.md)", "[a](../security.md)"),
        ("docs/start.md", "![a](demo.png) [b](#c) [d](https://e.f)", "![a](demo.png) [b](#c) [d](https://e.f)"),
        ("docs/results.md", "[`a`](results/acdc3) [b](../tests/conftest.py)", "`a` b"),
        ("docs/start.md", "[a](misspelt.md)", "[a](misspelt.md)"),
        ("docs/start.md", "`[a](../LICENSE)`\n\n    [a](../LICENSE)", "`[a](../LICENSE)`\n\n    [a](../LICENSE)"),
    ],
    ids=["into docs", "to a document at the root", "inside of the site", "to what is no page", "to nothing", "in code"],
)
def test_links_of_the_site(source, text, turned):
    hooks = runpy.run_path(str(ROOT / "docs" / "hooks.py"))
    assert hooks["site_links"](text, source) == turned


@pytest.mark.parametrize(
    ("tag", "foreign"),
    [
        ('<script async src="https://cdn.example.org/a.js">', True),
        ('<link rel="stylesheet" href="//fonts.example.org/a.css">', True),
        ("<img alt=\"a\" src='http://example.org/a.png'>", True),
        ('<a href="https://example.org"><script src="../a.js"></script><img src="a.png"><link href="a.css">', False),
    ],
)
def test_the_build_warns_of_what_a_page_loads_from_another_place(tag, foreign, caplog):
    hooks = runpy.run_path(str(ROOT / "docs" / "hooks.py"))
    hooks["on_post_page"](tag, page=SimpleNamespace(file=SimpleNamespace(src_uri="a.md")))
    assert len(caplog.records) == foreign


def test_modules_of_the_api_pages_exist():
    texts = "\n".join(file.read_text() for file in (ROOT / "docs" / "api").glob("*.md"))
    modules = re.findall(r"^::: (\S+)$", texts, re.MULTILINE)
    assert modules
    assert all((ROOT / f"{name.replace('.', '/')}.py").is_file() for name in modules)


@pytest.mark.parametrize("name", ["README.md", "docs/choosing.md", "docs/unlabeled.md"])
def test_scores_that_are_told_elsewhere_stand_in_the_results(name):
    told = re.findall(r"\b0\.\d{3}\b", (ROOT / name).read_text())
    assert told
    assert set(told) <= set(re.findall(r"\b0\.\d{3}\b", (ROOT / "docs" / "results.md").read_text()))


@pytest.mark.parametrize("task", TASKS)
def test_the_dice_of_every_row_of_a_task_stands_in_the_results_as_its_file_says(task):
    files = sorted((ROOT / "docs" / "results").glob(f"{task}*/results.json"))
    rows = [row for file in files for row in json.loads(file.read_text())["rows"].values()]
    scores = {f"{run['strict']['dice']:.3f}" for row in rows for run in row["runs"]}
    assert scores <= set(re.findall(r"\b0\.\d{3}\b", (ROOT / "docs" / "results.md").read_text()))


def console_scripts() -> list[str]:
    """Commands of this package, in the order of ``setup.cfg``."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options.entry_points"]["console_scripts"].splitlines()
    return [line.split("=")[0].strip() for line in lines if line]


def test_every_command_has_a_section():
    text = (ROOT / "docs" / "commands.md").read_text()
    assert sorted(re.findall(r"^## (\w+)$", text, re.MULTILINE)) == sorted(console_scripts())


@pytest.mark.parametrize("command", console_scripts())
def test_the_section_of_a_command_has_all_of_its_options(command, help_text):
    section = (ROOT / "docs" / "commands.md").read_text().split(f"\n## {command}\n")[1].split("\n## ")[0]
    first_column = "".join(re.findall(r"^\| ([^|]*) \|", section, re.MULTILINE))
    options = set(re.findall(r"^  (-[\w-]+)", help_text(command), re.MULTILINE)) - {"-h"}
    assert set(re.findall(r"`(-[\w-]+)`", first_column)) == options


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_commands_in_documents_exist(document):
    ours = console_scripts()
    for command in set(re.findall(r"\bnnUNetv2_crossmatch_\w+", document.read_text())):
        assert command in ours, command


def row_of_preset(method: type[Method], preset: str) -> str:
    """The line of the table of presets in docs/settings.md."""
    lines = (ROOT / "docs" / "settings.md").read_text().splitlines()
    rows = {line: re.findall(r"\w+", line.split("|")[1]) for line in lines if line.startswith(f"| `{preset}` (")}
    (row,) = (line for line, names in rows.items() if method.__name__ in names)
    return row


def test_the_recommended_preset_stands_in_the_table_with_its_tokens():
    tokens = row_of_preset(FixMatch, "recommended").split("|")[2].split(";")[0].replace(",", "").split()
    name = FixMatch.Settings.trainer
    assert settings_from_name(f"{name}_recommended") == settings_from_name("_".join([name, *tokens]))


@pytest.mark.parametrize(
    ("method", "preset"),
    [(method, preset) for method in METHODS for preset in method.presets if preset != "recommended"],
)
def test_published_presets_stand_in_the_table_with_their_values(method, preset):
    row = row_of_preset(method, preset)
    s = settings_from_name(f"{method.Settings.trainer}_{preset}")
    optimizer = {"adamw": "AdamW", "sgd": "SGD"}[s.optimizer]
    optimizer += f" with learning rate {s.learning_rate}" if s.learning_rate else ""
    batches, length = f"{s.batch} + {s.unlabeled_batch} samples", f"{s.epochs} epochs of {s.iterations} steps"
    threshold = [f"tau {s.tau}"] if hasattr(s, "tau") else []
    for value in (*threshold, optimizer, batches, length):
        assert f" {value}" in row, value
    assert (s.warmup == 0) == ("no warm-up" in row)


def documented_flags(document: Path) -> list[tuple[str, list[str]]]:
    """Commands of this package in the code blocks of ``document``, with their flags."""
    joined = document.read_text().replace("\\\n", " ")
    lines = re.findall(r"^\s*(?:\$ )?(nnUNetv2_crossmatch_\w+)([^\n|`]*)$", joined, flags=re.MULTILINE)
    return [(name, [w for w in shlex.split(rest, comments=True) if w.startswith("-")]) for name, rest in lines]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_flags_in_documents_exist(document, help_text):
    for name, flags in documented_flags(document):
        for flag in flags:
            assert re.search(rf"(?<![\w-]){re.escape(flag)}\b", help_text(name)), f"{name} {flag}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_benchmark_flags_in_documents_exist(document):
    """Checked in the source of each benchmark, since running one takes minutes to hours."""
    joined = document.read_text().replace("\\\n", " ")
    for script, options in re.findall(
        r"^    (?:[A-Z_]+=\S+ )*python (benchmarks/\w+\.py)([^\n|`]*)$", joined, re.MULTILINE
    ):
        source = (ROOT / script).read_text()
        for flag in (word for word in shlex.split(options) if word.startswith("-")):
            assert re.search(rf"add(?:_argument)?\(\s*\"{re.escape(flag)}\"", source), f"{script} {flag}"


@pytest.fixture(scope="module")
def help_text():
    environment = {**os.environ, **command_server.variables()}

    @cache
    def text(name: str) -> str:
        return subprocess.run([name, "-h"], env=environment, capture_output=True, text=True, check=True).stdout

    return text
