import hashlib
import random
from collections import Counter

import numpy as np
import pytest
import torch

from stormproof_train.data import mnist1d
from stormproof_train.data.mnist1d import MNIST1D
from stormproof_train.errors import UserError
from tests.support.split_arrays import load_splits

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data() -> MNIST1D:
    dataset = MNIST1D(seed=3)
    dataset.setup("fit")
    dataset.setup("test")
    return dataset


# recorded from mnist1d 0.0.2.post1 on NumPy 2.4 and SciPy 1.17: the sum of the squares, the first four numbers of the
# first signal, the first ten labels, the SHA-256 of all labels as bytes
RECORDED = {
    "train": (
        159248.2538, [-0.33200568, -0.47191036, -0.77869707, -1.00974083], [2, 6, 4, 5, 6, 6, 6, 0, 3, 1],
        "6e13c7aab5f831266ec59efd193e310c511faefd71cfc5d39427c20337df4dc6",
    ),
    "test": (
        40751.7462, [-0.07877078, -0.21073170, -0.09175138, 0.28267112], [2, 6, 3, 9, 4, 3, 1, 9, 5, 2],
        "9486539f99fcca7dc5923aba4d0cb5b7963f8e8e1f74398ca33a64ccb3b5b654",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("part", RECORDED)
def test_the_signals_are_the_recorded_ones(data: MNIST1D, part: str):
    squares, first, labels, digest = RECORDED[part]
    inputs, targets = mnist1d._make_splits()[part]
    assert inputs.double().square().sum().item() == pytest.approx(squares, rel=1e-5)
    assert inputs[0, 0, :4].tolist() == pytest.approx(first, rel=1e-5)
    assert targets[:10].tolist() == labels
    assert hashlib.sha256(targets.numpy().astype("uint8").tobytes()).hexdigest() == digest


@pytest.mark.slow
def test_all_signals_together_have_mean_0_and_standard_deviation_1(data: MNIST1D):
    every = torch.cat([mnist1d._make_splits()["train"][0], mnist1d._make_splits()["test"][0]]).double()
    assert every.shape == (5000, 1, 40)
    assert every.mean().item() == pytest.approx(0, abs=1e-6)
    assert every.std(correction=0).item() == pytest.approx(1, rel=1e-6)


def test_validation_is_held_out_of_the_training_signals_and_stratified(data: MNIST1D):
    parts = load_splits(data)
    assert [len(targets) for _, targets in parts.values()] == [3600, 400, 1000]
    whole = Counter(mnist1d._make_splits()["train"][1].tolist())
    held_out = Counter(parts["validation"][1].tolist())
    assert all(abs(held_out[digit] - 0.1 * whole[digit]) < 1 for digit in range(10))
    rows = {name: {tuple(row.flatten().tolist()) for row in inputs} for name, (inputs, _) in parts.items()}
    assert not rows["train"] & rows["validation"]
    assert len(rows["train"] | rows["validation"] | rows["test"]) == 5000


@pytest.mark.slow
def test_making_them_draws_nothing_from_the_process_generators():
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 (these global generators are the ones that the package seeds)
    expected = random.random(), np.random.rand()  # noqa: NPY002
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    mnist1d._make_splits.cache_clear()
    mnist1d._make_splits()
    assert (random.random(), np.random.rand()) == expected  # noqa: NPY002


def test_without_its_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mnist1d, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[mnist1d\]'$"):
        MNIST1D()
