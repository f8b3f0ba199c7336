"""MC-Net+ (Wu et al., MedIA 2022): MC-Net with a third decoder. Limit: what differs from ``mcnet``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nnunetv2_crossmatch.methods.mcnet import MCNet, MCNetSettings


@dataclass(frozen=True)
class MCNetPlusSettings(MCNetSettings):
    """All settings of an MC-Net+ run."""

    trainer: ClassVar[str] = "nnUNetTrainerMCNetPlus"


class MCNetPlus(MCNet):
    """One encoder and three decoders."""

    Settings = MCNetPlusSettings
    ways = ("linear", "nearest")
    summary = "three decoders that differ in their up-sampling agree"
