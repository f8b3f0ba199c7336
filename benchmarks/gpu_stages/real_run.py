"""Stage d: CrossMatch and its supervised control trained for the same time on prepared data, then predicted and scored.

Steps are timed first, so that each training fills its part of the stage's time. Limit: minutes, one seed; the scores
show that the way from data to scores works at full size, and how fast it is.
"""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from prepared_trainer import begin

from benchmarks.gpu_stages.sheet import Sheet, stage_arguments
from benchmarks.gpu_stages.step_profile import make_trainer, prepared

ROWS = {"CrossMatch": "", "supervised": "_unsup0"}
EPOCHS, TIMED_STEPS = 8, 40
TRAINING_SHARE = 0.75
"""Of a row's time; the rest is for starts, figures, checkpoints and prediction."""
COMPILE_SECONDS = 400.0
"""Of the stage, from which on the networks are compiled."""


def train(dataset: dict[str, Any], tokens: str, device: torch.device, seconds: float, dry: bool) -> dict[str, Any]:
    """Train for about ``seconds``, predict with the final weights, score."""
    begun = time.monotonic()
    step = seconds_per_step(dataset, tokens, device, 2 if dry else TIMED_STEPS)
    epochs = 1 if dry else EPOCHS
    left = TRAINING_SHARE * (seconds - (time.monotonic() - begun))
    iterations = 2 if dry else max(1, int(left / step / epochs))
    name = f"nnUNetTrainerCrossMatch_{epochs}epochs_iters{iterations}_valiters1_seed0{tokens}"
    trainer = make_trainer(dataset, name, device)
    start = time.monotonic()
    trainer.run_training()
    result = {"trainer": name, "steps": epochs * iterations, "step_ms": 1000 * step}
    result["training_s"] = time.monotonic() - start
    if device.type == "cuda":
        result["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return result | scored(trainer, dataset, device)


def seconds_per_step(dataset: dict[str, Any], tokens: str, device: torch.device, steps: int) -> float:
    """Mean over the second half of ``steps`` steps with their loading."""
    trainer = make_trainer(dataset, f"nnUNetTrainerCrossMatch_1epochs_iters{steps}_seed1_warmup0{tokens}", device)
    begin(trainer)
    for number in range(steps):
        if number == steps // 2:
            synchronize(device)
            start = time.perf_counter()
        trainer.train_step(next(trainer.dataloader_train))
    synchronize(device)
    seconds = time.perf_counter() - start
    trainer.stop_loaders()
    return seconds / (steps - steps // 2)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def scored(trainer: Any, dataset: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Mean Dice and Jaccard per class over the validation cases, with the final weights."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    from nnunetv2_crossmatch.evaluation.evaluate import evaluate_folder

    raw = Path(os.environ["nnUNet_raw"]) / dataset["name"]
    predictions = Path(trainer.output_folder) / "predicted"
    predictions.mkdir()
    start = time.monotonic()
    predictor = nnUNetPredictor(device=device, perform_everything_on_device=device.type == "cuda", allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, ("all",), "checkpoint_final.pth")
    predictor.predict_from_files_sequential(str(raw / "imagesVal"), str(predictions))
    seconds = time.monotonic() - start
    scores = evaluate_folder(raw / "labelsVal", predictions, raw / "dataset.json")
    means = {
        group: {m: float(scores.per_case(group, m).mean()) for m in ("dice", "jaccard")} for group in scores.groups
    }
    return {"cases": len(scores.cases), "prediction_s": seconds, "scores": means}


def main() -> None:
    arguments = stage_arguments()
    sheet, dry = Sheet(arguments.result, arguments.seconds), arguments.dry
    device = torch.device("cuda" if torch.cuda.is_available() and not dry else "cpu")
    compiles = device.type == "cuda" and arguments.seconds >= COMPILE_SECONDS
    os.environ.setdefault("nnUNet_compile", "t" if compiles and not missing_compiler() else "f")
    if device.type == "cpu":
        os.environ.setdefault("nnUNet_n_proc_DA", "1")
    else:
        torch.backends.cudnn.benchmark = True
    sheet.add("compiled", os.environ["nnUNet_compile"])
    data = prepared(arguments.result)
    if not data:
        raise SystemExit("no data set is ready: see prepare in run.json")
    sheet.add("data", data[0])
    for number, (name, tokens) in enumerate(ROWS.items()):
        seconds = sheet.left / (len(ROWS) - number)
        sheet.attempt(name, partial(train, data[0], tokens, device, seconds, dry))


def missing_compiler() -> list[str]:
    from nnunetv2_crossmatch.training.requirements import missing_for_compiler

    return missing_for_compiler()


if __name__ == "__main__":
    main()
