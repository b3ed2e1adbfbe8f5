from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stormproof_train.data import fashion_mnist
from stormproof_train.data.fashion_mnist import FashionMNIST
from stormproof_train.data.splits import split_two_ways
from stormproof_train.errors import UserError
from tests.support.fashion_files import FILE_NAMES, encode_idx, write_dataset
from tests.support.split_arrays import concatenate_batches, load_splits, sort_rows, to_sorted_rows


@pytest.fixture
def images(tmp_path: Path) -> dict[str, np.ndarray]:
    """Sixty training and twenty test images, brighter ones, packed as Debian packs them."""
    return write_dataset(tmp_path / "debian", np.arange(60) % 10)


def _fashion(tmp_path: Path, **arguments: Any) -> FashionMNIST:
    folders = {"root": str(tmp_path / "data"), "packaged": str(tmp_path / "debian")}
    return FashionMNIST(**folders, **{"validation_fraction": 1 / 3, "batch_size": 8, **arguments})


def test_debians_files_are_unpacked_into_the_root(images: dict[str, np.ndarray], tmp_path: Path):
    _fashion(tmp_path).prepare_data()
    raw = tmp_path / "data" / "FashionMNIST" / "raw"
    assert {file.name: file.read_bytes() for file in raw.iterdir()} == {
        name: encode_idx(array) for name, array in images.items()
    }


def test_files_that_are_there_are_not_touched(images: dict[str, np.ndarray], tmp_path: Path):
    raw = tmp_path / "data" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name in FILE_NAMES:
        (raw / name).write_bytes(b"mine")
    _fashion(tmp_path, download=True).prepare_data()
    assert {file.read_bytes() for file in raw.iterdir()} == {b"mine"}


def test_files_that_are_there_in_part_are_completed(images: dict[str, np.ndarray], tmp_path: Path):
    raw = tmp_path / "data" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / FILE_NAMES[0]).write_bytes(encode_idx(images[FILE_NAMES[0]]))
    _fashion(tmp_path).prepare_data()
    assert sorted(file.name for file in raw.iterdir()) == sorted(FILE_NAMES)


def test_files_that_are_nowhere_are_a_sentence_with_every_way_out(tmp_path: Path):
    with pytest.raises(UserError) as excinfo:
        _fashion(tmp_path).prepare_data()
    for word in (f"data.root={tmp_path / 'data'}", str(tmp_path / "debian"), "dataset-fashion-mnist", "data.download"):
        assert word in str(excinfo.value)
    assert not list(tmp_path.iterdir())


def test_a_download_is_made_only_where_it_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    urls = []

    class Downloads:
        resources = fashion_mnist.datasets.FashionMNIST.resources

        def __init__(self, root: str, download: bool) -> None:
            urls.append(download)
            raw = Path(root) / "FashionMNIST" / "raw"
            raw.mkdir(parents=True)
            for name in FILE_NAMES:
                (raw / name).write_text(name)

    monkeypatch.setattr(fashion_mnist, "datasets", SimpleNamespace(FashionMNIST=Downloads))
    with pytest.raises(UserError):
        _fashion(tmp_path).prepare_data()
    assert urls == []
    raw = tmp_path / "data" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / FILE_NAMES[0]).write_bytes(b"mine")
    for _ in range(2):
        _fashion(tmp_path, download=True).prepare_data()
    assert urls == [True]
    expected = {FILE_NAMES[0]: "mine", **{name: name for name in FILE_NAMES[1:]}, ".lock": ""}
    assert {file.name: file.read_text() for file in raw.iterdir()} == expected


def test_the_training_split_is_counted_when_it_is_read(tmp_path: Path):
    labels = np.array([0] * 30 + list(range(10)) * 3)
    write_dataset(tmp_path / "debian", labels)
    data = _fashion(tmp_path, seed=1)
    assert data.spec.class_counts is None
    training_indices, _ = split_two_ways(60, 1 / 3, 1, labels)
    assert data.load_spec().class_counts == tuple(np.bincount(labels[training_indices]).tolist())
    assert FashionMNIST.spec.class_counts is None


def test_fashion_is_scaled_by_the_training_split_alone(images: dict[str, np.ndarray], tmp_path: Path):
    data = _fashion(tmp_path, seed=2)
    data.prepare_data()
    pixels, labels = images[FILE_NAMES[0]].astype(float), images[FILE_NAMES[1]]
    training_indices, held_out = split_two_ways(60, 1 / 3, 2, labels)
    mean, std = pixels[training_indices].mean(), pixels[training_indices].std(ddof=1)
    expected = {
        "train": (pixels[training_indices], labels[training_indices]),
        "validation": (pixels[held_out], labels[held_out]),
        "test": (images[FILE_NAMES[2]].astype(float), images[FILE_NAMES[3]]),
    }
    for name, split in load_splits(data).items():
        assert split[0].shape[1:] == (1, 28, 28)
        raw, classes = expected[name]
        np.testing.assert_allclose(sort_rows(split), to_sorted_rows((raw - mean) / std, classes), rtol=1e-4, atol=1e-5)
    assert Counter(labels[held_out].tolist()) == dict.fromkeys(range(10), 2)


def test_the_test_files_are_not_read_before_testing(images: dict[str, np.ndarray], tmp_path: Path):
    data = _fashion(tmp_path)
    data.prepare_data()
    for name in FILE_NAMES[2:]:
        (tmp_path / "data" / "FashionMNIST" / "raw" / name).write_bytes(b"not an IDX file")
    data.setup("fit")
    data.setup("validate")
    assert len(concatenate_batches(data.train_dataloader())[0]) == 40
    with pytest.raises(AssertionError):  # torchvision's: it is now that they are read
        data.setup("test")
