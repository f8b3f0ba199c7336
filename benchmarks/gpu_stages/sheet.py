"""The results of one stage, whole on the disk after each of them, and the options that every stage takes.

Limit: plain values; an error of one result is a result, the others go on.
"""

from __future__ import annotations

import argparse
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu_stages.page import write_json


class Sheet:
    """Results by name in ``file``; ``seconds`` from now on is the stage's time.

    Attributes:
        deadline: in seconds of the monotonic clock.
    """

    def __init__(self, file: Path, seconds: float) -> None:
        self.file, self.content = file, {}
        self.deadline = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()

    def add(self, name: str, value: Any) -> None:
        """Add a result and write the file."""
        self.content[name] = value
        write_json(self.file, self.content)

    def attempt(self, name: str, work: Callable[[], Any], least: float = 0.0) -> Any:
        """Add the result of ``work``, or the error that it ended with; skipped if less than ``least`` seconds are left.

        Returns:
            The result, or None.
        """
        if self.left < least:
            return self.add(name, {"skipped": f"{self.left:.0f} s left"})
        try:
            value = work()
        except Exception as error:
            traceback.print_exc()
            return self.add(
                name, {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
            )
        self.add(name, value)
        return value


def error_of(error: Exception) -> dict[str, str]:
    """The result that stands for an error."""
    first_line = next(iter(str(error).splitlines()), "")
    return {"error": f"{type(error).__name__}: {first_line}"}


def stage_arguments() -> argparse.Namespace:
    """Options of a stage's process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--dry", action="store_true")
    return parser.parse_args()
