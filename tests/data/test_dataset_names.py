"""Names of data sets: every one that the host trains goes through the commands, and printed commands run as printed."""

from __future__ import annotations

import shlex

import pytest
from conftest import TinyDataset, renamed
from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_crossmatch import folders
from nnunetv2_crossmatch.cli.environment_checks import check_dataset
from nnunetv2_crossmatch.data.preprocessing import is_preprocessed
from nnunetv2_crossmatch.data.unlabeled_folder import unlabeled_folder_of
from nnunetv2_crossmatch.errors import InputError

NAMES = ["Dataset998_Knee-MR v1.2", "Dataset998_Leber (CT) ä", "Dataset998", "Dataset998-a", "Dataset998_it's"]


@pytest.mark.parametrize("name", NAMES)
def test_a_data_set_is_found_by_its_id_if_the_host_finds_it(tiny_copy: TinyDataset, name: str) -> None:
    renamed(tiny_copy, name)
    assert list(find_candidate_datasets(998)) == [name]
    assert folders.dataset_name(998) == folders.dataset_name("998") == folders.dataset_name(name) == name


def test_the_number_of_another_data_set_is_no_match(tiny_copy: TinyDataset) -> None:
    """The host takes data set 1998 for one with the id 199, too."""
    renamed(tiny_copy, "Dataset1998_Four")
    assert folders.dataset_name(1998) == "Dataset1998_Four"
    with pytest.raises(InputError, match="id 199 is carried by no folder"):
        folders.dataset_name(199)


@pytest.mark.parametrize("name", NAMES)
def test_the_printed_command_names_the_data_set(tiny_copy: TinyDataset, name: str) -> None:
    tiny = renamed(tiny_copy, name)
    command = unlabeled_folder_of(PlansManager(str(tiny.plans_file)), "2d", "nnUNetPlans").command
    assert shlex.split(command)[1:3] == ["-d", name]
    fixes = [result.fix for result in check_dataset(name, ["2d"], "nnUNetPlans") if "_preprocess" in result.fix]
    assert [shlex.split(fix)[2] for fix in fixes] == [name]


@pytest.mark.slow
def test_a_data_set_with_blanks_and_dots_is_preprocessed_and_trained(tiny_copy: TinyDataset) -> None:
    tiny = renamed(tiny_copy, NAMES[0])
    tiny.run("nnUNetv2_crossmatch_preprocess", "-d", "998", "-c", "2d", "-np", "1")
    assert is_preprocessed(PlansManager(str(tiny.plans_file)), "2d")
    trainer = "nnUNetTrainerCrossMatch_1epochs_iters1_valiters1"
    tiny.run("nnUNetv2_train", NAMES[0], "2d", "all", "-tr", trainer, "-device", "cpu")
    model = tiny.results / f"{trainer}__nnUNetPlans__2d"
    assert (model / "fold_all" / "checkpoint_final.pth").is_file()
    exported = tiny.run("nnUNetv2_crossmatch_export", "-m", str(model), "-o", str(tiny.root / "exported")).stdout
    command = exported.splitlines()[1].removeprefix("Predict anywhere: ")
    assert NAMES[0] in shlex.split(command)[2]
