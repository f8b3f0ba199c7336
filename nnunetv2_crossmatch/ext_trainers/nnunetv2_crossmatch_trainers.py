"""The entry point: nnU-Net imports this file from ``nnUNet_extTrainer`` and asks it for a trainer by name.

Limit: re-exports by absolute import, so that there is one copy of every class and pickling by name works.
"""

from typing import Any

from nnunetv2_crossmatch.errors import install_excepthook
from nnunetv2_crossmatch.training import named, supervised

install_excepthook()


def __getattr__(name: str) -> Any:
    """Trainers are made from their names; other names raise AttributeError, as the host's search expects."""
    return getattr(supervised if name.startswith(f"{supervised.HOST_NAME}_") else named, name)
