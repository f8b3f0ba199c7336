"""A trained model that predicts one case after the other, with nnU-Net's own predictor.

Limit: in one process; for the speed of many workers there is ``nnUNetv2_predict``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from numpy.typing import NDArray

from nnunetv2_crossmatch import ext_trainers
from nnunetv2_crossmatch.data.case_preprocessing import NnunetObjects, read_and_check
from nnunetv2_crossmatch.data.manifest import file_info
from nnunetv2_crossmatch.data.plans_check import check_dataset_file, check_plans_file
from nnunetv2_crossmatch.data.raw_cases import RawCase
from nnunetv2_crossmatch.errors import InputError, Problem
from nnunetv2_crossmatch.training.checkpoints import load_checkpoint

COMPARED = ("channel_names", "labels", "regions_class_order")
"""What a model and a data set must have in common."""


@dataclass(frozen=True)
class Prediction:
    """Labels (z, y, x) of one case in its own grid, probabilities (C, z, y, x), and what the reader said of it."""

    labels: NDArray[Any]
    probabilities: NDArray[np.float32]
    properties: dict[str, Any]

    def confidence(self, regions: bool) -> float:
        """Mean probability, 0 to 1, of the labels of all foreground voxels; of all voxels where there are none.

        Regions: the mean over the regions of max(p, 1 - p).
        """
        p = self.probabilities
        per_voxel = np.maximum(p, 1 - p).mean(axis=0) if regions else p.max(axis=0)
        foreground = self.labels > 0
        return float(per_voxel[foreground if foreground.any() else ...].mean())


class CasePredictor:
    """The model in ``folder`` (``<trainer>__<plans>__<configuration>``), mirroring as nnU-Net does.

    Args:
        folds: numbers or ``all``; None for all that are there.
        checkpoint: name of the file in each fold.
        device: where it runs.
        trusted: own classes that the plans may name.
        mirroring: whether to predict the mirrored images, too, where the training allows it.

    Raises:
        InputError: no such model, or one whose files name or run foreign code.
    """

    def __init__(
        self,
        folder: Path,
        folds: Sequence[str] | None,
        checkpoint: str,
        device: torch.device,
        trusted: Sequence[str] = (),
        mirroring: bool = True,
    ) -> None:
        check_plans_file(folder / "plans.json", trusted)
        check_dataset_file(folder / "dataset.json")
        found = [file for file in sorted(folder.glob(f"fold_*/{checkpoint}")) if folds is None or _fold(file) in folds]
        missing = sorted(set(folds or ()) - {_fold(file) for file in found})
        if missing or not found:
            detail = f"{checkpoint} of {', '.join(missing) or 'any fold'} is missing"
            raise InputError(Problem("no model", folder, detail, "finish the training, or give other folds (-f)"))
        for file in found:
            load_checkpoint(file)  # refuses foreign code, which nnU-Net would run
        self.files = found
        os.environ.setdefault("nnUNet_extTrainer", next(iter(ext_trainers.__path__)))
        self.predictor = nnUNetPredictor(device=device, use_mirroring=mirroring, allow_tqdm=False)
        self.predictor.initialize_from_trained_model_folder(str(folder), tuple(map(_fold, found)), checkpoint)
        self.reader = self.predictor.plans_manager.image_reader_writer_class()
        if self.predictor.configuration_manager.previous_stage_name is not None:
            detail = "it is the second stage of a cascade, which also wants the predictions of the first one"
            raise InputError(Problem("model not supported", folder, detail, "give a model of another configuration"))

    @property
    def regions(self) -> bool:
        """Whether the outputs are regions."""
        return bool(self.predictor.label_manager.has_regions)

    def check_dataset(self, file: Path) -> dict[str, Any]:
        """The content of the data set's ``dataset.json``.

        Raises:
            InputError: its channels or labels are not those of the model.
        """
        description = check_dataset_file(file)
        other = [name for name in COMPARED if description.get(name) != self.predictor.dataset_json.get(name)]
        if other:
            detail = f"{', '.join(other)} differ from those that the model was trained with"
            raise InputError(Problem("model of another data set", file, detail, "give a model of this data set"))
        return description

    @property
    def facts(self) -> dict[str, Any]:
        """What tells this model from another one: its folder, and the CRC32 of each checkpoint."""
        checkpoints = {f"{file.parent.name}/{file.name}": file_info(file).crc32 for file in self.files}
        return {"model": str(self.files[0].parents[1]), "checkpoints": checkpoints}

    def predict(self, images: Sequence[Path]) -> Prediction:
        """Predict one case given by its channel files.

        Raises:
            InputError: a file is damaged or unreadable, or its voxels, channels or voxel size are impossible.
        """
        return self.predict_preprocessed(*self.preprocess(images))

    def preprocess(self, images: Sequence[Path]) -> tuple[torch.Tensor, dict[str, Any]]:
        """The image (channels, z, y, x) as the network wants it, and its properties; raises as :meth:`predict`."""
        model = self.predictor
        objects = model.plans_manager, model.configuration_manager, model.dataset_json
        array, properties = read_and_check(NnunetObjects(*objects), RawCase(images[0].name, tuple(images)))
        preprocessor = model.configuration_manager.preprocessor_class(verbose=False)
        data, _, properties = preprocessor.run_case_npy(array, None, properties, *objects)
        return torch.from_numpy(data), properties

    def predict_preprocessed(self, data: torch.Tensor, properties: dict[str, Any]) -> Prediction:
        """Predict what :meth:`preprocess` gave."""
        model = self.predictor
        logits = model.predict_logits_from_preprocessed_data(data).cpu()
        managers = model.plans_manager, model.configuration_manager, model.label_manager
        labels, probabilities = convert_predicted_logits_to_segmentation_with_correct_shape(
            logits, *managers, properties, return_probabilities=True
        )
        return Prediction(labels, probabilities, properties)

    @contextmanager
    def of_fold(self, index: int) -> Iterator[None]:
        """Predict with that fold of :attr:`files` alone."""
        model = self.predictor
        every, model.list_of_parameters = model.list_of_parameters, [model.list_of_parameters[index]]
        try:
            yield
        finally:
            model.list_of_parameters = every


def _fold(checkpoint: Path) -> str:
    return checkpoint.parent.name.removeprefix("fold_")
