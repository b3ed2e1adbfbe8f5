from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stormproof_train.errors import UserError
from stormproof_train.evaluation.predictions import Predictions


@pytest.mark.parametrize(
    "saved",
    [
        Predictions("scores", np.array([[0.25, 0.75], [1.0, 0.0]], dtype=np.float32), np.array([1, 0])),
        Predictions("values", np.array([[1.5], [2.5]]), np.array([[1.0], [2.0]]), np.array([7, 8], dtype=np.uint32)),
    ],
    ids=["classification", "regression"],
)
def test_what_is_saved_is_loaded(saved: Predictions, tmp_path: Path):
    saved.save(tmp_path / "predictions.npz")
    loaded = Predictions.load(tmp_path / "predictions.npz")
    assert loaded.kind == saved.kind
    assert loaded.outputs.dtype == saved.outputs.dtype
    assert np.array_equal(loaded.outputs, saved.outputs)
    assert np.array_equal(loaded.target, saved.target)
    assert np.array_equal(loaded.samples, saved.samples) if saved.samples is not None else loaded.samples is None


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("touched"),)


def test_a_file_that_holds_something_else_is_a_sentence_and_nothing_in_it_is_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    np.savez(
        tmp_path / "evil.npz", kind=np.array("scores"), outputs=np.array([_Evil()], dtype=object), target=np.array([0])
    )
    np.savez(tmp_path / "other.npz", weights=np.ones(3))
    np.save(tmp_path / "array.npz", np.ones(3))
    (tmp_path / "array.npz.npy").rename(tmp_path / "array.npz")
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "empty.npz").touch()
    for name in ("evil.npz", "other.npz", "array.npz", "text.npz", "empty.npz", "missing.npz"):
        with pytest.raises(UserError, match=f"{name} is damaged or contains no predictions"):
            Predictions.load(tmp_path / name)
    assert not (tmp_path / "touched").exists()


BAD = {
    "fewer targets": ("scores", np.ones((3, 2)), np.zeros(2, dtype=int)),
    "targets of a regression": ("scores", np.ones((3, 2)), np.ones((3, 1))),
    "none": ("values", np.ones((0, 2)), np.ones((0, 2))),
    "a class that is not there": ("scores", np.ones((3, 2)), np.array([0, 1, 2])),
    "a class below zero": ("scores", np.ones((3, 2)), np.array([0, -1, 1])),
    "fewer samples": ("scores", np.ones((3, 2)), np.array([0, 1, 1]), np.array([1, 2])),
    "another kind": ("guesses", np.ones((3, 2)), np.array([0, 1, 1])),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_what_does_not_fit_is_refused(bad: Any):
    with pytest.raises(ValueError, match=r"do not match|must be from 0 to 1|must be one of .*, got guesses"):
        Predictions(*bad)
