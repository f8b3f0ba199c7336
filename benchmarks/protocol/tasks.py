"""The four tasks of a comparison by name: which data, how many labels, how large; each is one command.

Limit: options that a command line may replace; where the data lie is given with ``--data``.
"""

from __future__ import annotations

from typing import Any

STEPS = 3000
"""Of a task that says nothing else."""
TASKS: dict[str, dict[str, Any]] = {
    "acdc3": {"dataset": "acdc", "place": "acdc_h5", "labeled": 3, "small": 8, "allow_missing": True},
    "la8": {
        "place": "la_half",
        "labeled": 8,
        "configuration": "2d",
        "small": 8,
        "classes": ["atrium"],
        "channels": ["MRI"],
    },
    "hippocampus2": {
        "place": "hippocampus",
        "labeled": 2,
        "steps": 1200,
        "configuration": "3d_fullres",
        "small": 8,
        "patch": [32, 48, 32],
        "classes": ["anterior", "posterior"],
        "channels": ["MRI"],
    },
    "nuclei3": {
        "place": "dsb2018",
        "labeled": 3,
        "configuration": "2d",
        "small": 8,
        "classes": ["nucleus"],
        "channels": ["microscopy"],
    },
}
"""By name: options of the command; ``place`` is the folder below ``--data``."""
