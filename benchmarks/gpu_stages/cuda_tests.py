"""Stage a: the tests that need a GPU, with the outcome of each as soon as pytest tells it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu_stages.sheet import Sheet, stage_arguments

ROOT = Path(__file__).resolve().parents[2]
FILES = ("tests/training/test_gpu.py", "tests/training/test_gpu_trainer.py", "tests/learning/test_network.py")
OPTIONS = ("-p", "no:cacheprovider", "--color=no", "-o", "timeout=0")
LINE = re.compile(r"^(tests/\S+::.*?) (PASSED|FAILED|ERROR|SKIPPED)\b")


def main() -> None:
    arguments = stage_arguments()
    sheet = Sheet(arguments.result, arguments.seconds)
    command = [sys.executable, "-m", "pytest", "-v", "-m", "gpu", *OPTIONS, *FILES]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as tests:
        for line in tests.stdout or ():
            print(line, end="", flush=True)
            if found := LINE.match(line):
                sheet.add(*found.groups())
    sheet.add("exit code", tests.returncode)


if __name__ == "__main__":
    main()
