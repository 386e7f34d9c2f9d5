"""What can be said of a folder before nnU-Net's own code is needed."""

import json

import pytest

from captum_causalseg import load_nnunet


@pytest.fixture
def model_folder(tmp_path):
    folder = tmp_path / "Dataset004_Made" / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    (folder / "fold_1").mkdir(parents=True)
    for name in ("plans.json", "dataset.json"):
        (folder / name).write_text(json.dumps({}))
    (folder / "fold_1" / "checkpoint_best.pth").touch()
    return folder


def test_there_is_no_such_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder: there is no folder .*nowhere"):
        load_nnunet(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match="it is a file"):
        load_nnunet(tmp_path / "file")


def test_a_folder_of_results_says_which_models_it_holds(tmp_path, model_folder):
    with pytest.raises(
        FileNotFoundError,
        match=r"folder: there is no plans\.json in .*; there are models in it: Dataset004_Made/nnUNetTrainer__nnUNetPlans__3d_fullres",
    ):
        load_nnunet(tmp_path)


def test_the_checkpoints_that_there_are(tmp_path, model_folder):
    expected = r"folds: there is no checkpoint fold_0/checkpoint_final\.pth in .*; there are: \['fold_1/checkpoint_best\.pth'\]"
    for given in ({}, {"dataset": 4}, {"dataset": "Dataset004_Made"}):
        with pytest.raises(FileNotFoundError, match=expected):
            load_nnunet(tmp_path if given else model_folder, **given)
    with pytest.raises(FileNotFoundError, match="fold_0"):
        load_nnunet(model_folder / "fold_1")


def test_names_within_all_results(tmp_path, model_folder):
    with pytest.raises(ValueError, match=r"dataset: expected one of \['Dataset004_Made'\] in .*, got 5"):
        load_nnunet(tmp_path, dataset=5)
    with pytest.raises(FileNotFoundError, match=r"no model nnUNetTrainer__nnUNetPlans__2d in .*; there are: .*3d_fullres"):
        load_nnunet(tmp_path, dataset=4, configuration="2d")
    with pytest.raises(ValueError, match="dataset: expected one beside '2d', got None"):
        load_nnunet(model_folder, configuration="2d")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"folds": ()}, "folds: expected a sequence of folds"),
        ({"folds": "best"}, "folds: "),
        ({"step": 0}, "step: expected a finite number of more than 0 and at most 1"),
        ({"mirroring": 1}, "mirroring: expected True or False"),
        ({"trust": "yes"}, "trust: expected True or False"),
    ],
)
def test_bad_arguments(model_folder, given, said):
    with pytest.raises((TypeError, ValueError), match=said):
        load_nnunet(model_folder, **given)
