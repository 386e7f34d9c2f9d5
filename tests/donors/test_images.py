"""Images that donors come from: what is refused, and when."""

import pytest
import torch
from donor_cases import Lazy, box

from captum_causalseg import ActivationBank, Blur, Constant, PatchBank


def test_bad_banks_are_refused_at_once():
    with pytest.raises(ValueError, match="images: the bank is empty"):
        PatchBank([])
    with pytest.raises(ValueError, match='placement: expected "anywhere" or "aligned", got \'here\''):
        PatchBank(torch.rand(1, 1, 8), placement="here")
    with pytest.raises(TypeError, match="images: expected a tensor or a sequence of images, got int"):
        PatchBank(3)
    with pytest.raises(ValueError, match="cache_images: expected at least 1, got 0"):
        PatchBank(torch.rand(1, 1, 8), cache_images=0)
    with pytest.raises(ValueError, match="value: expected a finite number"):
        Constant(float("nan"))
    with pytest.raises(ValueError, match="baselines: 2 values given for images of 3 channels"):
        Constant([1.0, 2.0]).bind(torch.rand(1, 3, 8))
    with pytest.raises(ValueError, match="sigma: expected a positive number, got 0"):
        Blur(0)


def test_a_dataset_that_changes_under_our_hands_is_refused():
    class Fickle(Lazy):
        def __getitem__(self, index):
            self.reads += 1
            return torch.rand(1, 8 + self.reads, 8)

    bank = PatchBank(Fickle(torch.rand(2, 1, 8, 8)), cache_images=1)
    with pytest.raises(ValueError, match="changed its shape between two reads"):
        bank.bind(torch.rand(1, 1, 16, 16)).read(0, box((0, 0), (4, 4)), 0)


def test_paths_are_no_images_and_files_that_are_not_there_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^images\[0\]: there is no file 'nope\.png'$"):
        PatchBank(["nope.png"])
    with pytest.raises(FileNotFoundError, match=r"^images: there is no file 'nope\.png'$"):
        PatchBank("nope.png")
    path = tmp_path / "there.png"
    path.touch()
    with pytest.raises(
        TypeError, match=r"^images\[1\]: expected an image .*there\.png'; PatchBank.from_folder reads the files of"
    ):
        PatchBank([torch.rand(1, 8, 8), path])
    with pytest.raises(FileNotFoundError, match=r"^folder: there is no folder '.*nowhere'$"):
        PatchBank.from_folder(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("images", "match"),
    [
        ({"a": torch.rand(1, 8, 8)}, r"^images: expected a tensor or a sequence of images, got dict$"),
        (b"abc", r"^images: expected a tensor or a sequence of images, got bytes$"),
        ([torch.rand(1, 8, 8), 3], r"^images\[1\]: expected a tensor or an array of real numbers, got int$"),
        (torch.rand(8), r"^images: expected shape \(D, C, \*spatial\), got \(8,\)$"),
        (torch.rand(2, 1, 8, 8) + 0j, r"^images: expected real numbers, got torch\.complex64$"),
    ],
)
def test_what_is_no_images_is_refused_at_once(images, match):
    for make in (PatchBank, ActivationBank):
        with pytest.raises((TypeError, ValueError), match=match):
            make(images)


def test_items_of_a_data_set_that_are_no_images_are_refused_when_they_are_read():
    bank = PatchBank.from_dataset([{"image": 3}], key="image")
    with pytest.raises(TypeError, match=r"^images: expected tensors or arrays \(C, \*spatial\), got int for donor image 0$"):
        bank.bind(torch.rand(1, 1, 8, 8))
