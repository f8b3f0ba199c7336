"""``benchmarks/confidence.py``: its command prints numbers that were counted by hand."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import command_server
import numpy as np
import pytest
from segmentation_folders import write, write_dataset_json

COMMAND = ["python", str(Path(__file__).parents[2] / "benchmarks" / "confidence.py")]
# Ten voxels: label in the reference, label given, its probability. The last one is ignored.
VOXELS = [(0, 0, 0.99)] * 4 + [(1, 1, 0.9), (1, 1, 0.6), (1, 0, 0.9), (2, 2, 0.7), (0, 2, 0.7), (3, 1, 0.99)]


def write_case(root: Path, labels: dict) -> list[str]:
    reference, given, probability = (np.array(column) for column in zip(*VOXELS, strict=True))
    probabilities = np.tile((1 - probability) / 2, (3, 1))
    probabilities[given, np.arange(len(VOXELS))] = probability
    write(root / "labelsTs" / "a.nii.gz", reference.reshape(1, 2, 5).astype(np.uint8))
    write(root / "predictions" / "a.nii.gz", given.reshape(1, 2, 5).astype(np.uint8))
    np.savez(root / "predictions" / "a.npz", probabilities=probabilities.reshape(3, 1, 2, 5).astype(np.float32))
    write_dataset_json(root, labels)
    return [*COMMAND, "-r", str(root / "labelsTs"), "-p", str(root / "predictions")]


def run(arguments: list[str], check: bool = False) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **command_server.variables()}
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, check=check)


def test_shares_equal_those_counted_by_hand(tmp_path):
    labels = {"background": 0, "body": 1, "core": 2, "ignore": 3}
    arguments = [*write_case(tmp_path, labels), "--tau", "0", "0.8", "--json", str(tmp_path / "out.json")]
    printed = run(arguments, check=True).stdout
    assert "1 cases" in printed
    found = {(row["tau"], row["class"]): row for row in json.loads((tmp_path / "out.json").read_text())["rows"]}
    shares = {key: [row[name] for name in ("kept", "right", "size")] for key, row in found.items()}
    assert shares[0, "background"] == pytest.approx([1, 4 / 5, 5 / 5])
    assert shares[0, "body"] == pytest.approx([1, 1, 2 / 3])
    assert shares[0, "core"] == pytest.approx([1, 1 / 2, 2])
    assert shares[0.8, "background"] == pytest.approx([1, 4 / 5, 5 / 4])
    assert shares[0.8, "body"] == pytest.approx([1 / 2, 1, 1 / 2])
    assert shares[0.8, "core"] == pytest.approx([0, np.nan, np.nan], nan_ok=True)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"background": 0, "body": [1, 2, 3], "core": [2, 3]}, "its channels are regions"),
        ({"background": 0, "body": 1, "core": 2, "rim": 3}, "3 channels"),
    ],
)
def test_probabilities_of_other_channels_are_refused(tmp_path, labels, words):
    done = run(write_case(tmp_path, labels))
    assert done.returncode == 2
    assert words in done.stderr


def test_missing_probabilities_are_named(tmp_path):
    arguments = write_case(tmp_path, {"background": 0, "body": 1, "core": 2, "ignore": 3})
    (tmp_path / "predictions" / "a.npz").unlink()
    done = run(arguments)
    assert done.returncode == 2
    assert "a.npz" in done.stderr
    assert "--save_probabilities" in done.stderr
