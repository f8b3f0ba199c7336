"""Gives every Python process the start method in ``TEST_START_METHOD``: ``spawn`` is what macOS and Windows have.

Limit: read where this folder is in ``PYTHONPATH``.
"""

import multiprocessing
import os

if method := os.environ.get("TEST_START_METHOD"):
    multiprocessing.set_start_method(method, force=True)
