"""The door: nnU-Net imports this file from ``nnUNet_extTrainer`` and asks it for a trainer by name.

Limit: re-exports by absolute import, so that there is one copy of every class and pickling by name works.
"""

from typing import Any

import nnunetv2_crossmatch.training.supervised as supervised
import nnunetv2_crossmatch.training.trainer as trainer
from nnunetv2_crossmatch.errors import install_excepthook

install_excepthook()


def __getattr__(name: str) -> Any:
    """Trainers are made from their names; other names raise AttributeError, as the host's search expects."""
    return getattr(supervised if name.startswith(f"{supervised.HOST_NAME}_") else trainer, name)
