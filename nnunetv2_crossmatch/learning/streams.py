"""The ways from an image to a prediction (streams), by view of the image and perturbation of its features.

Limit: a table. ``network`` walks it, ``losses`` compares its ends, ``step`` runs both.

    stream  view     features   role
    wn      weak     clean      teacher, without gradient
    ww, ws  weak     weak, strong dropout    students of wn, assistants of sw and ss
    s1, s2  strong1, strong2  clean          students of wn
    sw, ss  strong2  weak, strong dropout    students of wn and of their assistants
"""

from __future__ import annotations

from dataclasses import dataclass

LABELED = "labeled"
TEACHER = "wn"
STRONG_VIEWS = ("strong1", "strong2")
VIEWS = ("weak", *STRONG_VIEWS)


@dataclass(frozen=True)
class Stream:
    """``view`` of the unlabeled image, and ``perturbation`` ("weak", "strong") of its features or None."""

    view: str
    perturbation: str | None


# Assistants stand before their students: the sequential execution needs their labels first.
STREAMS = {
    "wn": Stream("weak", None),
    "s1": Stream("strong1", None),
    "s2": Stream("strong2", None),
    "ww": Stream("weak", "weak"),
    "ws": Stream("weak", "strong"),
    "sw": Stream("strong2", "weak"),
    "ss": Stream("strong2", "strong"),
}
