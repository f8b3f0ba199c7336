"""The correlations that show whether a review ranks cases."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import review_ranking


def write_cases(folder: Path, dice: list[float | None]) -> None:
    """Cases whose disagreement falls with Dice, whose entropy rises with it, and whose volume is Dice."""
    (folder / "held_out" / "measures").mkdir(parents=True)
    for number, one in enumerate(dice):
        value = 0.0 if one is None else one
        content = {
            "dice": one,
            "disagreement": {"strong view": [1 - value, 1.2 - value]},
            "unsure": 1 - value,
            "entropy": value,
            "classes": {"blob": {"voxels": round(1000 * value)}},
        }
        (folder / "held_out" / "measures" / f"{number}.json").write_text(json.dumps(content))


def test_a_measure_that_falls_with_dice_has_the_correlation_one(tmp_path, capsys):
    write_cases(tmp_path, [0.5, 0.9, None, 0.7, 0.6, 0.8])
    review_ranking.main(tmp_path)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "5 cases, mean Dice 0.700"
    values = {line[:30].strip(): line[30:].split()[0] for line in printed[1:]}
    assert values == {
        **dict.fromkeys(("disagreement", "disagreement, strong view", "unsure surface", "small volume"), "1.00"),
        "entropy": "-1.00",
    }


def test_too_few_cases_are_told(tmp_path):
    write_cases(tmp_path, [0.5, None, 0.7])
    with pytest.raises(SystemExit, match=r"too few held-out cases in .*: 2"):
        review_ranking.main(tmp_path)
