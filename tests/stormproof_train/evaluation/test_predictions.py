from pathlib import Path

import numpy as np
import pytest

from stormproof_train.errors import UserError
from stormproof_train.evaluation.predictions import Predictions, in_order


@pytest.mark.parametrize(
    "saved",
    [
        Predictions(np.array([[0.25, 0.75], [1.0, 0.0]], dtype=np.float32), np.array([1, 0])),
        Predictions(np.array([[1.5], [2.5]]), np.array([[1.0], [2.0]])),
    ],
    ids=["classification", "regression"],
)
def test_what_is_saved_is_loaded(saved: Predictions, tmp_path: Path):
    saved.save(tmp_path / "predictions.npz")
    loaded = Predictions.load(tmp_path / "predictions.npz")
    assert loaded.is_classification == saved.is_classification
    assert loaded.outputs.dtype == saved.outputs.dtype
    assert np.array_equal(loaded.outputs, saved.outputs)
    assert np.array_equal(loaded.target, saved.target)


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("touched"),)


def test_a_file_that_holds_something_else_is_a_sentence_and_nothing_in_it_is_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "evil.npz", outputs=np.array([_Evil()], dtype=object), target=np.array([0]))
    np.savez(tmp_path / "other.npz", weights=np.ones(3))
    (tmp_path / "text.npz").write_text("no archive")
    for name in ("evil.npz", "other.npz", "text.npz", "missing.npz"):
        with pytest.raises(UserError, match=f"{name} holds no predictions of ours"):
            Predictions.load(tmp_path / name)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("outputs", "target"),
    [(np.ones((3, 2)), np.zeros(2, dtype=int)), (np.ones((3, 2)), np.ones((3, 1))), (np.ones((0, 2)), np.ones((0, 2)))],
    ids=["fewer targets", "fewer outputs", "none"],
)
def test_shapes_that_do_not_fit_are_refused(outputs: np.ndarray, target: np.ndarray):
    with pytest.raises(ValueError, match="do not fit"):
        Predictions(outputs, target)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("samples", [3, 10, 11, 12])
def test_the_parts_of_the_ranks_make_up_the_whole(ranks: int, samples: int):
    whole = np.arange(2 * samples).reshape(samples, 2)
    assert np.array_equal(in_order([whole[rank::ranks] for rank in range(ranks)]), whole)
    padded = np.concatenate([whole, whole[: -samples % ranks]])
    assert np.array_equal(in_order([padded[rank::ranks] for rank in range(ranks)], samples), whole)
