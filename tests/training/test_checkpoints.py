"""Checkpoints: nothing half-written, nothing broken, nothing foreign; and models that stock nnU-Net reads."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import re
import resource
import shlex
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TinyDataset, blob_case
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from trainers import make_trainer, weights_of

from nnunetv2_crossmatch.cli.model_export import (
    MODEL_FILES,
    export_model,
    files_missing_for_zip_export,
    predict_command,
)
from nnunetv2_crossmatch.errors import InputError
from nnunetv2_crossmatch.folders import exclusive
from nnunetv2_crossmatch.training.checkpoints import (
    DamagedCheckpointError,
    atomic_checkpoint,
    keep_previous_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    nonfinite,
    tensor_bytes,
    write_checkpoint,
)
from nnunetv2_crossmatch.training.durable import DurableTrainer

TRAINER = "nnUNetTrainerCrossMatch_2epochs"


def checkpoint(epoch: int = 1, **more: object) -> dict:
    weights = {"encoder.weight": torch.arange(6.0), "steps": torch.tensor(3)}
    return {"network_weights": weights, "current_epoch": epoch, "trainer_name": TRAINER, "init_args": {}, **more}


def written(folder: Path, **epochs: int) -> None:
    for name, epoch in epochs.items():
        write_checkpoint(checkpoint(epoch), folder / f"checkpoint_{name}.pth")


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def empty(file: Path) -> None:
    os.truncate(file, 0)


def flip(file: Path) -> None:
    """Alter one bit of the first weight, which ``torch.load`` does not notice."""
    content = bytearray(file.read_bytes())
    content[content.index(np.arange(6, dtype=np.float32).tobytes())] ^= 1
    file.write_bytes(content)


def scribble(file: Path) -> None:
    file.write_text("no checkpoint")


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    write_checkpoint(checkpoint(7), tmp_path / "c.pth")
    assert load_checkpoint(tmp_path / "c.pth")["current_epoch"] == 7


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_checkpoint(checkpoint(1), tmp_path / "c.pth")
    with pytest.raises(TypeError), atomic_checkpoint(tmp_path / "c.pth", 0) as temporary:
        temporary.write_bytes("half")
    assert load_checkpoint(tmp_path / "c.pth")["current_epoch"] == 1
    assert os.listdir(tmp_path) == ["c.pth"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_never_written(tmp_path: Path, value: float) -> None:
    write_checkpoint(checkpoint(1), tmp_path / "c.pth")
    broken = checkpoint(2)
    broken["network_weights"]["encoder.weight"][3] = value
    with pytest.raises(InputError, match=r"weights not finite.*encoder\.weight"):
        write_checkpoint(broken, tmp_path / "c.pth")
    assert load_checkpoint(tmp_path / "c.pth")["current_epoch"] == 1


def test_the_tensors_that_are_not_finite_are_named() -> None:
    weights = {"a": torch.ones(2), "b": torch.tensor([1.0, float("nan")]), "c": torch.tensor(1)}
    assert nonfinite(weights) == ["b"]


def test_size_counts_tensors_at_any_depth() -> None:
    assert tensor_bytes({"a": [torch.zeros(3), (torch.zeros(2, dtype=torch.int8),)], "b": "text"}) == 14


def write_with_little_room(file: Path, told: Path) -> None:
    """Run in a process of its own: files may not become larger than 100 kB."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    weights = {"w": torch.zeros(1_000_000)}
    with pytest.raises(InputError) as error:
        write_checkpoint({**checkpoint(2), "network_weights": weights}, file)
    told.write_text(str(error.value))


def test_34_a_full_disk_keeps_the_old_checkpoint_and_tells_the_bytes(tmp_path: Path) -> None:
    file, told = tmp_path / "full" / "c.pth", tmp_path / "told"
    file.parent.mkdir()
    write_checkpoint(checkpoint(1), file)
    process = multiprocessing.get_context("fork").Process(target=write_with_little_room, args=(file, told))
    process.start()
    process.join()
    assert told.read_text().startswith("error: disk full in")
    assert "4000000 are needed" in told.read_text()
    assert os.listdir(file.parent) == ["c.pth"]
    assert load_checkpoint(file)["current_epoch"] == 1


@pytest.mark.parametrize("harm", [cut, empty, flip, scribble])
def test_a_damaged_checkpoint_is_not_loaded(tmp_path: Path, harm) -> None:
    write_checkpoint(checkpoint(), tmp_path / "c.pth")
    harm(tmp_path / "c.pth")
    with pytest.raises(DamagedCheckpointError):
        load_checkpoint(tmp_path / "c.pth")


def test_a_file_of_tensors_that_is_no_training_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save({"weights": torch.ones(1)}, tmp_path / "c.pth")
    with pytest.raises(DamagedCheckpointError, match="network_weights, current_epoch"):
        load_checkpoint(tmp_path / "c.pth")


@pytest.mark.parametrize("name", ["network_weights", "current_epoch", "trainer_name", "init_args"])
def test_a_checkpoint_without_an_entry_that_a_training_has_is_refused(tmp_path: Path, name: str) -> None:
    """Of those that the host reads to predict and to go on."""
    torch.save({key: value for key, value in checkpoint().items() if key != name}, tmp_path / "c.pth")
    with pytest.raises(DamagedCheckpointError, match=f"no training checkpoint: {name} is missing"):
        load_checkpoint(tmp_path / "c.pth")


def test_numbers_arrays_and_random_states_of_numpy_are_allowed(tmp_path: Path) -> None:
    numbers = [np.float64(1.5), np.float32(2), np.int64(3), np.bool_(True)]
    content = {"logging": {"x": numbers}, "rng": np.random.get_state(), "device": torch.device("cpu")}
    write_checkpoint(checkpoint(**content), tmp_path / "c.pth")
    assert load_checkpoint(tmp_path / "c.pth")["logging"]["x"] == numbers


class Foreign:
    def __reduce__(self):
        return os.system, ("touch was_here",)


def test_39_a_checkpoint_with_foreign_code_is_refused_and_its_code_not_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(checkpoint(extra=Foreign()), tmp_path / "c.pth")
    with pytest.raises(InputError, match=r"foreign code in \S+\.pth: .*system"):
        load_checkpoint(tmp_path / "c.pth")
    assert not (tmp_path / "was_here").exists()
    torch.load(tmp_path / "c.pth", weights_only=False)
    assert (tmp_path / "was_here").exists()  # the code is a working one: who loads it otherwise runs it


@pytest.mark.parametrize(
    ("epochs", "chosen"),
    [
        ({"final": 10, "latest": 10, "best": 4}, "final"),
        ({"final": 5, "latest": 8, "best": 4}, "latest"),
        ({"latest": 6, "best": 7}, "best"),
        ({"best": 3}, "best"),
    ],
)
def test_36_the_checkpoint_that_came_furthest_is_taken(tmp_path: Path, epochs: dict[str, int], chosen: str) -> None:
    written(tmp_path, **epochs)
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert (found.file.name, found.next_epoch) == (f"checkpoint_{chosen}.pth", epochs[chosen])


@pytest.mark.parametrize("harm", [cut, empty, flip, scribble])
def test_36_an_unreadable_checkpoint_is_set_aside_and_the_next_one_taken(tmp_path: Path, harm) -> None:
    written(tmp_path, final=10, latest=8)
    harm(tmp_path / "checkpoint_final.pth")
    said: list[str] = []
    found = newest_checkpoint(tmp_path, said.append)
    assert found is not None
    assert found.file.name == "checkpoint_latest.pth"
    assert "kept as checkpoint_final.pth.corrupt" in said[0]
    assert sorted(os.listdir(tmp_path)) == ["checkpoint_final.pth.corrupt", "checkpoint_latest.pth"]


def test_36_without_a_readable_checkpoint_there_is_none(tmp_path: Path) -> None:
    written(tmp_path, latest=8)
    empty(tmp_path / "checkpoint_latest.pth")
    assert newest_checkpoint(tmp_path, lambda line: None) is None


def test_the_latest_checkpoint_is_saved_after_every_tenth_epoch_but_the_last(tiny_copy, monkeypatch) -> None:
    """After the last one the final checkpoint is there."""
    trainer, saved = make_trainer(tiny_copy, "nnUNetTrainerCrossMatch_30epochs"), []

    def next_epoch(self: nnUNetTrainer) -> None:
        self.current_epoch += 1

    monkeypatch.setattr(nnUNetTrainer, "on_epoch_end", next_epoch)
    monkeypatch.setattr(trainer, "save_latest", lambda: saved.append(trainer.current_epoch))
    for _ in range(30):
        DurableTrainer.on_epoch_end(trainer)
    assert saved == [10, 20]


def test_checkpoints_of_a_run_that_went_further_are_never_overwritten(tmp_path: Path) -> None:
    """900 epochs, then two starts by mistake without --c, of which each was stopped soon; then a longer one."""
    for epoch in (900, 3, 2, 40, 950):
        written(tmp_path, latest=epoch, best=epoch - 1)
        keep_previous_checkpoints(tmp_path, lambda line: None)
    kept = {name: load_checkpoint(tmp_path / name)["current_epoch"] for name in os.listdir(tmp_path)}
    latest = "checkpoint_latest.pth.previous"
    assert {name: epoch for name, epoch in kept.items() if "latest" in name} == {
        latest: 950,
        f"{latest}2": 40,
        f"{latest}3": 2,
    }


def test_kept_checkpoints_that_cannot_be_read_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "checkpoint_best.pth.previous").write_bytes(b"no checkpoint")
    written(tmp_path, best=5)
    keep_previous_checkpoints(tmp_path, lambda line: None)
    assert (tmp_path / "checkpoint_best.pth.previous").read_bytes() == b"no checkpoint"
    assert load_checkpoint(tmp_path / "checkpoint_best.pth.previous2")["current_epoch"] == 5


def failing(error: BaseException):
    def fail(*arguments: object, **options: object) -> None:
        raise error

    return fail


NOT_OPENED = [OSError(code, os.strerror(code)) for code in (errno.EACCES, errno.ESTALE, errno.EIO, errno.EMFILE)]


@pytest.mark.parametrize(
    ("place", "error"),
    [
        *(("io.open", error) for error in NOT_OPENED),
        ("zipfile.ZipFile.testzip", OSError(errno.EIO, os.strerror(errno.EIO))),
        ("zipfile.ZipFile.testzip", MemoryError()),
        ("torch.load", MemoryError()),
        ("torch.load", RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")),
        ("torch.load", RuntimeError("unable to open file <c> in read-only mode: Too many open files (24)")),
    ],
)
def test_a_checkpoint_that_could_not_be_read_is_not_damaged(tmp_path: Path, place: str, error, monkeypatch) -> None:
    written(tmp_path, final=10, latest=8)
    before = sorted(os.listdir(tmp_path))
    monkeypatch.setattr(place, failing(error))
    for read in (lambda: newest_checkpoint(tmp_path), lambda: load_checkpoint(tmp_path / "checkpoint_final.pth")):
        with pytest.raises(InputError, match=r"file not read in .*checkpoint_final\.pth: .*Fix: mend that") as told:
            read()
        assert not isinstance(told.value, DamagedCheckpointError)
    monkeypatch.undo()
    assert sorted(os.listdir(tmp_path)) == before


def test_36_foreign_code_is_an_error_and_stays_where_it_is(tmp_path: Path) -> None:
    torch.save(checkpoint(extra=Foreign()), tmp_path / "checkpoint_latest.pth")
    with pytest.raises(InputError, match="foreign code"):
        newest_checkpoint(tmp_path)
    assert (tmp_path / "checkpoint_latest.pth").exists()


FILES = ("checkpoint_final.pth", "checkpoint_best.pth")


def untrained(tiny: TinyDataset, fold: str) -> None:
    """The two checkpoints of a fold as our trainer writes them, with an entry of our own, and the host's records."""
    trainer = make_trainer(tiny, TRAINER, fold=fold)
    trainer.initialize()
    trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()  # as when its loaders are made
    for name in FILES:
        trainer.save_checkpoint(str(trainer.folder / name))
        saved = load_checkpoint(trainer.folder / name)
        write_checkpoint({**saved, "our_random_state": 1}, trainer.folder / name)
        torch.nn.utils.vector_to_parameters(1.1 * weights_of(trainer), trainer.network.parameters())
    (trainer.folder / "validation").mkdir()
    (trainer.folder / "progress.png").touch()
    (trainer.folder / "validation" / "summary.json").write_text("{}")


def described(tiny: TinyDataset) -> Path:
    """The model folder of ``tiny``'s results with what the host keeps beside the folds."""
    (folder,) = tiny.results.iterdir()
    for name in ("dataset.json", "dataset_fingerprint.json"):
        shutil.copy(tiny.preprocessed / name, folder / name)
    shutil.copy(tiny.plans_file, folder / "plans.json")
    return folder


@pytest.fixture
def model(tiny_copy: TinyDataset) -> Path:
    """A model folder as a training of one fold leaves it."""
    untrained(tiny_copy, "all")
    return described(tiny_copy)


@pytest.fixture
def two_folds(tiny_copy: TinyDataset) -> Path:
    """A model folder of two folds, with other weights in each of its four checkpoints."""
    for fold in "01":
        untrained(tiny_copy, fold)
    return described(tiny_copy)


def class_probabilities(model_folder: Path, image: np.ndarray, mirroring: bool = True) -> np.ndarray:
    """What the host predicts for ``image`` (1, z, y, x) with both folds of ``model_folder``, (class, z, y, x)."""
    predictor = nnUNetPredictor(0.5, use_mirroring=mirroring, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model_folder), (0, 1))
    spacing = {"spacing": [1.5, 1.0, 1.0]}
    return predictor.predict_single_npy_array(image, spacing, save_or_return_probabilities=True)[1]


def test_39_an_exported_model_predicts_in_stock_nnunet_voxel_for_voxel(
    two_folds: Path, tmp_path: Path, monkeypatch
) -> None:
    """Without the variable that leads to our trainers, both folds together, mirrored as the host does by itself."""
    image = blob_case(0)[0][None, 8:12]
    ours = class_probabilities(two_folds, image)
    exported = export_model(two_folds, tmp_path / "shared")
    monkeypatch.delenv("nnUNet_extTrainer")
    assert np.array_equal(class_probabilities(exported, image), ours)
    assert not np.array_equal(class_probabilities(exported, image, mirroring=False), ours)


def test_every_exported_checkpoint_has_the_weights_of_its_own(two_folds: Path, tmp_path: Path) -> None:
    exported = export_model(two_folds, tmp_path / "shared")
    names = [f"fold_{fold}/{name}" for fold in "01" for name in FILES]
    before, after = (
        [load_checkpoint(folder / name)["network_weights"] for name in names] for folder in (two_folds, exported)
    )
    for number, weights in enumerate(after):
        equal = [all(torch.equal(value, weights[key]) for key, value in other.items()) for other in before]
        assert equal == [number == other for other in range(len(names))]


@pytest.mark.parametrize(
    ("method", "weights", "module"), [("MeanTeacher", "teacher", "average"), ("CPS", "peer", "peer")]
)
def test_the_networks_beside_the_trained_one_are_exported_on_request(
    tiny_copy: TinyDataset, tmp_path: Path, method: str, weights: str, module: str
) -> None:
    trainer = make_trainer(tiny_copy, f"nnUNetTrainer{method}_seed1")
    trainer.initialize()
    trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    trainer.save_checkpoint(str(trainer.folder / FILES[0]))
    exported = export_model(described(tiny_copy), tmp_path / "shared", weights=weights)
    content = load_checkpoint(exported / "fold_all" / FILES[0])
    expected = getattr(trainer.method, module).state_dict()
    assert list(content["network_weights"]) == list(expected)
    assert all(torch.equal(value, expected[name]) for name, value in content["network_weights"].items())
    assert not torch.equal(next(iter(expected.values())), next(iter(trainer.network.state_dict().values())))
    assert content["crossmatch_origin"]["weights"] == weights


def test_two_networks_are_exported_as_two_folds_whose_mean_predicts(tiny_copy: TinyDataset, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_copy, "nnUNetTrainerCPS_seed1")
    trainer.initialize()
    trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    trainer.save_checkpoint(str(trainer.folder / FILES[0]))
    model = described(tiny_copy)
    (model / "fold_all" / "progress.png").write_bytes(b"picture")
    exported = export_model(model, tmp_path / "shared", weights="mean")
    networks = {"fold_all": (trainer.network, "network"), "fold_0": (trainer.method.peer, "peer")}
    assert {fold.name for fold in exported.glob("fold_*")} == networks.keys()
    for fold, (network, name) in networks.items():
        content = load_checkpoint(exported / fold / FILES[0])
        expected = network.state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in content["network_weights"].items())
        assert content["crossmatch_origin"]["weights"] == name
        assert (exported / fold / "progress.png").read_bytes() == b"picture"
    assert " ".join(predict_command(exported, "cpu")).endswith("-f 0 all -chk checkpoint_final.pth -device cpu")


def test_weights_that_the_method_has_not_are_refused_with_those_that_it_has(model: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"no such weights in .*final\.pth: .* trained no teacher\. Fix: use --weights net"
    ):
        export_model(model, tmp_path / "shared", weights="teacher")
    assert not list((tmp_path / "shared").rglob("*.pth"))


def test_an_exported_model_is_named_as_a_stock_one_and_tells_its_origin(model: Path, tmp_path: Path) -> None:
    exported = export_model(model, tmp_path / "shared")
    assert exported == tmp_path / "shared" / "Dataset998_Tiny" / "nnUNetTrainer__nnUNetPlans__2d"
    content = load_checkpoint(exported / "fold_all" / "checkpoint_final.pth")
    assert content["trainer_name"] == "nnUNetTrainer"
    assert content["crossmatch_origin"] == json.loads((exported / "crossmatch_origin.json").read_text())
    origin = json.loads((exported / "crossmatch_origin.json").read_text())
    assert origin["trainer"] == TRAINER
    assert list(origin)[:2] == ["trainer", "dataset"]  # what one looks for comes first
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", origin["exported"])
    saved = load_checkpoint(model / "fold_all" / "checkpoint_final.pth")
    assert content.keys() - {"crossmatch_origin"} == saved.keys() - {"our_random_state"}  # all that the host saves


def test_models_of_one_data_set_are_exported_side_by_side(model: Path, tmp_path: Path) -> None:
    """Into a folder that has to be made first, with those above it, and then into the same."""
    other = model.with_name(model.name.replace("nnUNetPlans", "otherPlans"))
    shutil.copytree(model, other)
    exported = [export_model(each, tmp_path / "shared" / "with" / "others") for each in (model, other)]
    assert [each.name.split("__")[1] for each in exported] == ["nnUNetPlans", "otherPlans"]
    assert len({each.parent for each in exported}) == 1


def test_an_exported_model_travels_in_the_hosts_zip_file(model: Path, tiny_copy: TinyDataset, tmp_path: Path) -> None:
    exported = export_model(model, tmp_path / "shared")
    assert files_missing_for_zip_export(exported) == []
    (tmp_path / "elsewhere").mkdir()
    pack = ("nnUNetv2_export_model_to_zip", "-d", "998", "-o", str(tmp_path / "m.zip"), "-c", "2d", "-f", "all")
    tiny_copy.run(*pack, nnUNet_results=str(tmp_path / "shared"))
    unpack = ("nnUNetv2_install_pretrained_model_from_zip", str(tmp_path / "m.zip"))
    tiny_copy.run(*unpack, nnUNet_results=str(tmp_path / "elsewhere"))
    name = exported.relative_to(tmp_path / "shared") / "fold_all" / "checkpoint_final.pth"
    assert (tmp_path / "elsewhere" / name).read_bytes() == (tmp_path / "shared" / name).read_bytes()


def test_the_printed_command_predicts_with_the_exported_model(
    model: Path, tiny_copy: TinyDataset, tmp_path: Path
) -> None:
    """From a folder with a blank in its name; on the CPU, and of the folds that there are."""
    (model / "fold_all" / "progress.png").unlink()
    command = "nnUNetv2_crossmatch_export"
    printed = tiny_copy.run(command, "-m", str(model), "-o", str(tmp_path / "shared models")).stdout
    assert "will ask for fold_all/progress.png" in printed
    (line,) = re.findall(r"^Predict anywhere: (.*)$", printed, re.MULTILINE)
    (tmp_path / "IMAGES").mkdir()
    image = sorted((tiny_copy.raw / "imagesTr").iterdir())[0]
    (tmp_path / "IMAGES" / image.name).symlink_to(image)
    tiny_copy.run("bash", "-c", f"cd {shlex.quote(str(tmp_path))} && {line} --disable_tta -npp 1 -nps 1")
    assert (tmp_path / "OUT" / image.name.replace("_0000", "")).is_file()


def test_an_unfinished_fold_is_exported_only_on_request(model: Path, tmp_path: Path) -> None:
    (model / "fold_all" / "checkpoint_final.pth").rename(model / "fold_all" / "checkpoint_best.pth")
    with pytest.raises(InputError, match=r"training not finished in .*fold_all.*--unfinished"):
        export_model(model, tmp_path / "shared")
    exported = export_model(model, tmp_path / "shared", unfinished=True)
    assert "checkpoint_best.pth" in predict_command(exported, "cpu")
    recorded = json.loads((exported / "crossmatch_origin.json").read_text())["checkpoints"]
    assert recorded["fold_all/checkpoint_best.pth"]["epochs"] == 1


def test_folds_of_other_plans_are_not_exported(model: Path, tmp_path: Path) -> None:
    plans = json.loads((model / "plans.json").read_text())
    plans["configurations"]["2d"]["batch_size"] += 1
    (model / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(InputError, match=r"other plans in .*checkpoint_final"):
        export_model(model, tmp_path / "shared")


@pytest.mark.parametrize("harm", ["missing", "foreign", "of another shape"])
def test_weights_of_another_network_are_not_exported(model: Path, tmp_path: Path, harm: str) -> None:
    file = model / "fold_all" / "checkpoint_final.pth"
    content = load_checkpoint(file)
    weights = content["network_weights"]
    last = sorted(weights)[-1]
    value = weights.pop(last)
    if harm != "missing":
        weights[f"{last}.x" if harm == "foreign" else last] = value if harm == "foreign" else value[..., None]
    write_checkpoint(content, file)
    count = 2 if harm == "foreign" else 1
    with pytest.raises(InputError, match=rf"weights of another network in .*checkpoint_final.*{count} tensors.*{last}"):
        export_model(model, tmp_path / "shared")
    assert not list(tmp_path.glob("shared/*/*"))


def test_a_model_with_a_foreign_network_class_is_not_exported(model: Path, tmp_path: Path) -> None:
    plans = (model / "plans.json").read_text()
    (model / "plans.json").write_text(plans.replace("dynamic_network_architectures.architectures", "foreign"))
    with pytest.raises(InputError, match="foreign class in the plans"):
        export_model(model, tmp_path / "shared")


def test_nothing_is_exported_twice_to_one_place(model: Path, tmp_path: Path) -> None:
    exported = export_model(model, tmp_path / "shared")
    before = {file: file.stat().st_mtime_ns for file in exported.rglob("*")}
    with pytest.raises(InputError, match="already there"):
        export_model(model, tmp_path / "shared")
    assert {file: file.stat().st_mtime_ns for file in exported.rglob("*")} == before


def flip_weight(file: Path) -> None:
    """Alter one bit of a network's first weight."""
    first = next(iter(load_checkpoint(file)["network_weights"].values()))
    content = bytearray(file.read_bytes())
    content[content.index(first.numpy().tobytes())] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("harm", [cut, empty, flip_weight, scribble])
def test_a_damaged_model_is_not_exported_and_leaves_nothing(model: Path, tmp_path: Path, harm) -> None:
    harm(model / "fold_all" / "checkpoint_final.pth")
    with pytest.raises(InputError, match="checkpoint damaged"):
        export_model(model, tmp_path / "shared")
    assert not list(tmp_path.glob("shared/*/*"))


def test_of_two_exports_into_one_folder_the_second_is_refused(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "shared" / "Dataset998_Tiny" / "nnUNetTrainer__nnUNetPlans__2d"
    target.parent.mkdir(parents=True)
    with exclusive(target), pytest.raises(InputError, match=r"another process writes here in .*nnUNetTrainer__"):
        export_model(model, tmp_path / "shared")
    assert export_model(model, tmp_path / "shared") == target


def test_a_fold_without_checkpoint_is_named(model: Path, tmp_path: Path) -> None:
    (model / "fold_3").mkdir()
    with pytest.raises(InputError, match=r"no checkpoint in .*fold_3"):
        export_model(model, tmp_path / "shared")


@pytest.mark.parametrize(
    "name", ["model", "Dataset998_Tiny/model", "Dataset998_Tiny/a__b", "models/nnUNetTrainer__nnUNetPlans__2d"]
)
def test_a_folder_that_is_no_model_is_refused(name: str, tmp_path: Path) -> None:
    """Neither by its own name nor by that of the data set around it, even with all files of one."""
    folder = tmp_path / name
    folder.mkdir(parents=True)
    for file in MODEL_FILES:
        (folder / file).touch()
    with pytest.raises(InputError, match=r"no model folder in .*DatasetXXX_Name/<trainer>__<plans>__<config"):
        export_model(folder, tmp_path / "shared")
