"""Statistics are kept in files."""

import numpy as np
import pytest
import torch
from made_statistics import make

from captum_causalseg import AverageTreatmentEffect, TreatmentEffectStatistics


def test_what_is_saved_is_what_is_loaded(tmp_path):
    stats = make(output_shape=(2,), output_axes=("class",), settings={"seed": 3}, inputs_are_tuple=True)
    stats.save(tmp_path / "s.npz")
    with np.load(tmp_path / "s.npz", allow_pickle=False) as file:
        assert all(file[name].dtype.kind in "fiuU" for name in file.files)
    loaded = TreatmentEffectStatistics.load(tmp_path / "s.npz")
    for name, value in vars(stats).items():
        other = getattr(loaded, name)
        if isinstance(value, torch.Tensor):
            assert torch.equal(value.nan_to_num(9), other.nan_to_num(9)), name
            assert value.dtype == other.dtype
        elif name != "feature_mask":
            assert value == other, name
    assert torch.equal(loaded.feature_mask[0], stats.feature_mask[0])


def test_files_from_before_there_were_variances_for_tests_can_be_read(tmp_path):
    stats = make(output_shape=(2,))
    stats.save(tmp_path / "new.npz")
    with np.load(tmp_path / "new.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files if name not in ("test_variance", "adjustment")}
    np.savez(tmp_path / "old.npz", **arrays)
    loaded = TreatmentEffectStatistics.load(tmp_path / "old.npz")
    assert torch.equal(loaded.p_values().nan_to_num(9), stats.p_values().nan_to_num(9))
    assert torch.equal(loaded.test_variance.nan_to_num(9), stats.sample_variance.nan_to_num(9))
    assert (loaded.adjustment == 0).all()


def test_loading_something_else_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", a=np.ones(3))
    (tmp_path / "text.npz").write_text("no archive")
    for name in ("other.npz", "text.npz"):
        with pytest.raises(ValueError, match=r"path: .*is not a file written by TreatmentEffectStatistics\.save"):
            TreatmentEffectStatistics.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        TreatmentEffectStatistics.load(tmp_path / "missing.npz")


def test_settings_are_short_and_survive_a_file(tmp_path):
    image = torch.rand(1, 1, 8, 8)
    _, stats = AverageTreatmentEffect(lambda x, y: (x + y).sum((1, 2, 3))).attribute(
        (image, image), baselines=(torch.rand(3, 1, 8, 8), 0.5), block_size=(4, 4), n_draws=2, return_statistics=True
    )
    assert stats.settings["baselines"] == ["Tensor (3, 1, 8, 8)", 0.5]
    assert stats.settings["block_size"] == [[4, 4], [4, 4]]
    stats.save(tmp_path / "s.npz")
    assert TreatmentEffectStatistics.load(tmp_path / "s.npz").settings == stats.settings
