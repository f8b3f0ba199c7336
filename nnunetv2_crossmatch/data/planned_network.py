"""The network that plans describe, as stock nnU-Net builds it, and the shapes of its weights.

Limit: checks neither the plans nor whether this package can train the network.
"""

from __future__ import annotations

from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_crossmatch.data.plans_check import label_manager_of
from nnunetv2_crossmatch.errors import InputError, Problem

NOT_BUILT = (TypeError, ValueError, LookupError, AttributeError, AssertionError, ArithmeticError, RuntimeError)


def planned_network(
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    channels: int,
    heads: int,
    deep_supervision: bool = True,
) -> torch.nn.Module:
    """Build the network with fresh weights.

    Raises:
        InputError: these plans describe none.
    """
    sizes = channels, heads, deep_supervision
    try:
        return nnUNetTrainer.build_network_architecture(plans_manager, configuration_manager, *sizes)
    except NOT_BUILT as error:
        detail = f"no network can be built: {type(error).__name__}: {' '.join(str(error).split())}"
        fix = "restore the file, or plan a smaller network"
        raise InputError(Problem("unusable plans", "plans.json", detail, fix)) from error


def network_sizes(plans_manager: PlansManager, configuration: str, dataset_json: dict[str, Any]) -> tuple[int, int]:
    """Input channels and output heads of the network."""
    planned = plans_manager.get_configuration(configuration)
    channels: int = determine_num_input_channels(plans_manager, planned, dataset_json)
    return channels, label_manager_of(plans_manager, dataset_json).num_segmentation_heads


def planned_shapes(plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any]) -> dict[str, torch.Size]:
    """Shape of each weight of the network, by name; no memory is taken for them.

    Raises:
        InputError: these plans describe no network.
    """
    manager = PlansManager(plans)
    sizes = network_sizes(manager, configuration, dataset_json)
    with torch.device("meta"):
        network = planned_network(manager, manager.get_configuration(configuration), *sizes)
    return {name: value.shape for name, value in network.state_dict().items()}
