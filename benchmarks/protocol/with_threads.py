"""A console command of nnU-Net with a given number of threads.

    python -m benchmarks.protocol.with_threads 1 nnUNetv2_train ...

On a CPU the host takes as many threads as ``multiprocessing.cpu_count()`` says, whatever OMP_NUM_THREADS is.
Limit: threads of this process; workers have one each by nnU-Net's own doing.
"""

from __future__ import annotations

import multiprocessing
import sys
from importlib.metadata import entry_points


def main() -> None:
    """Run the command in this process."""
    threads, program, *arguments = sys.argv[1:]
    multiprocessing.cpu_count = lambda: int(threads)
    (entry,) = entry_points(group="console_scripts", name=program)
    sys.argv = [program, *arguments]
    sys.exit(entry.load()())


if __name__ == "__main__":
    main()
