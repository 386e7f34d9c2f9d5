import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch

from captum_causalseg.nnunet.checkpoints import read_checkpoint

HELD = {
    "network_weights": OrderedDict(weight=torch.ones(2)),
    "trainer_name": "nnUNetTrainer",
    "init_args": {"configuration": "3d_fullres"},
    "logging": {"train_losses": [np.float32(0.5)], "ema_fg_dice": [np.float64(0.25)], "epoch_start_timestamps": [np.int64(3)]},
}


def test_weights_and_the_numbers_of_the_log_are_read(tmp_path):
    torch.save(HELD, tmp_path / "a.pth")
    found = read_checkpoint(tmp_path / "a.pth")
    assert found["network_weights"]["weight"].tolist() == [1, 1]
    assert found["logging"] == HELD["logging"]


class Bomb:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_other_objects_are_refused_unless_they_are_trusted(tmp_path, capsys):
    torch.save(HELD | {"extra": Bomb()}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"checkpoint: .*a\.pth holds more than weights and numbers \(.*print.*\).*trust=True"):
        read_checkpoint(tmp_path / "a.pth")
    assert capsys.readouterr().out == ""
    assert read_checkpoint(tmp_path / "a.pth", trust=True)["trainer_name"] == "nnUNetTrainer"
    assert "must not run" in capsys.readouterr().out


def test_damaged_files_and_other_files_are_refused(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(ValueError, match=r"checkpoint: .*a\.pth is damaged or no checkpoint"):
        read_checkpoint(tmp_path / "a.pth")
    torch.save({"state_dict": {}}, tmp_path / "b.pth")
    with pytest.raises(ValueError, match=r"checkpoint: .*b\.pth is none of nnU-Net's, it holds no 'network_weights'"):
        read_checkpoint(tmp_path / "b.pth")
    (tmp_path / "c.pth").write_bytes(pickle.dumps([1, 2], protocol=2))
    with pytest.raises(ValueError, match=r"checkpoint: .*c\.pth"):
        read_checkpoint(tmp_path / "c.pth")
