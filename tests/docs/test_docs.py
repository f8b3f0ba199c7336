"""The documents agree with the code: settings, trainer names, links, commands and flags."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import subprocess
from dataclasses import fields
from functools import cache
from pathlib import Path

import command_server
import pytest

from nnunetv2_crossmatch.methods.names import METHODS, settings_from_name

ROOT = Path(__file__).parents[2]
OURS = "|".join(method.Settings.trainer for method in METHODS)
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "CONTRIBUTING.md"]


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
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_commands_in_documents_exist(document):
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    ours = {
        line.split("=")[0].strip() for line in setup["options.entry_points"]["console_scripts"].splitlines() if line
    }
    for command in set(re.findall(r"\bnnUNetv2_crossmatch_\w+", document.read_text())):
        assert command in ours, command


@pytest.mark.parametrize(("method", "preset"), [(method, preset) for method in METHODS for preset in method.presets])
def test_presets_stand_in_the_table_with_their_values(method, preset):
    lines = (ROOT / "docs" / "settings.md").read_text().splitlines()
    rows = {line: re.findall(r"\w+", line.split("|")[1]) for line in lines if line.startswith(f"| `{preset}` (")}
    (row,) = (line for line, names in rows.items() if method.__name__ in names)
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
