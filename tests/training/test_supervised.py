from __future__ import annotations

import pickle

import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from trainers import make_trainer

from nnunetv2_crossmatch.training.supervised import SupervisedTrainer

NAME = "nnUNetTrainer_3epochs_iters7_valiters2"


def test_the_length_in_the_name_is_all_that_differs_from_the_host(tiny_copy):
    """Every attribute of a fresh trainer is the host's, but the three lengths and what carries the name or the time."""
    ours, host = make_trainer(tiny_copy, NAME), make_trainer(tiny_copy, "nnUNetTrainer")
    assert (ours.num_epochs, ours.num_iterations_per_epoch, ours.num_val_iterations_per_epoch) == (3, 7, 2)
    plain = {key for key, value in vars(host).items() if isinstance(value, int | float | str | bool | None)}
    assert vars(ours).keys() == vars(host).keys()
    changed = {key for key in plain if getattr(ours, key) != getattr(host, key)}
    lengths = {"num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch"}
    assert changed - lengths <= {"output_folder", "output_folder_base", "log_file"}
    own = {name for name in vars(type(ours)) if not name.startswith("__")} | set(vars(SupervisedTrainer))
    assert not own & {name for name in vars(nnUNetTrainer) if not name.startswith("__")}


def test_what_the_name_leaves_out_is_as_the_host_has_it(tiny_copy):
    ours, host = make_trainer(tiny_copy, "nnUNetTrainer_12epochs"), make_trainer(tiny_copy, "nnUNetTrainer")
    assert ours.num_epochs == 12
    assert ours.num_iterations_per_epoch == host.num_iterations_per_epoch
    assert ours.num_val_iterations_per_epoch == host.num_val_iterations_per_epoch


def test_the_hosts_own_variants_come_first(tiny_copy):
    assert not issubclass(recursive_find_trainer_class_by_name("nnUNetTrainer_5epochs"), SupervisedTrainer)


@pytest.mark.parametrize("name", ["nnUNetTrainer_0epochs", "nnUNetTrainer_iters5", "nnUNetTrainer_2epochs_seed1"])
def test_other_names_are_not_found(tiny_copy, name):
    with pytest.raises(RuntimeError, match="Could not find requested nnunet trainer"):
        recursive_find_trainer_class_by_name(name)


def test_classes_pickle_to_themselves(tiny_copy):
    trainer = recursive_find_trainer_class_by_name(NAME)
    assert pickle.loads(pickle.dumps(trainer)) is trainer
