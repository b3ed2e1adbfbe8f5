import gzip
import struct
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from sklearn.datasets import load_diabetes, load_digits
from torch.utils.data import DataLoader, TensorDataset

from stormproof_train.data import fashion_mnist
from stormproof_train.data.diabetes import Diabetes
from stormproof_train.data.digits import Digits
from stormproof_train.data.fashion_mnist import FashionMNIST
from stormproof_train.data.in_memory import InMemory, Split, Tensors
from stormproof_train.data.spec import DataSpec, spec_of
from stormproof_train.data.splits import hold_out, three_way_split
from stormproof_train.errors import UserError

# ---------------------------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize(("validation", "test"), [(0.15, 0.15), (0.1, 0.4), (0.5, 0.25)])
@pytest.mark.parametrize("stratified", [True, False])
def test_splits_never_overlap_and_lose_nobody(validation: float, test: float, stratified: bool):
    classes = np.arange(200) % 4 if stratified else None
    parts = three_way_split(200, validation, test, 1, classes)
    assert sorted(np.concatenate(parts)) == list(range(200))
    held_out = [round(200 * validation), round(200 * test)]
    assert [len(part) for part in parts] == [200 - sum(held_out), *held_out]
    assert all((np.diff(part) > 0).all() for part in parts)


def test_splits_are_stratified():
    classes = np.repeat([0, 1, 2], [100, 60, 40])
    for part, share in zip(three_way_split(200, 0.2, 0.1, 0, classes), (0.7, 0.2, 0.1), strict=True):
        assert Counter(classes[part].tolist()) == {0: 100 * share, 1: 60 * share, 2: 40 * share}


def test_the_seed_and_nothing_else_fixes_a_split():
    one, again, other = (three_way_split(100, 0.2, 0.2, seed) for seed in (1, 1, 2))
    np.random.seed(5)  # noqa: NPY002 (the global state is what must not matter)
    later = three_way_split(100, 0.2, 0.2, 1)
    for a, b, c, d in zip(one, again, later, other, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
        assert not np.array_equal(a, d)


@pytest.mark.parametrize(("validation", "test"), [(0, 0.2), (0.2, 0), (-0.1, 0.2), (0.5, 0.5), (0.9, 0.2)])
def test_shares_that_leave_a_part_empty_are_refused(validation: float, test: float):
    with pytest.raises(ValueError, match=f"validation_fraction={validation} and test_fraction={test} must be above 0"):
        three_way_split(100, validation, test, 0)


@pytest.mark.parametrize("fraction", [0, 1, -1, 1.5, float("nan")])
def test_a_share_outside_its_range_cannot_be_held_out(fraction: float):
    with pytest.raises(ValueError, match=f"a fraction of {fraction} cannot be held out"):
        hold_out(10, fraction, 0)


# ---------------------------------------------------------------------------------------- digits and diabetes


def _whole(loader: DataLoader) -> Split:
    inputs, targets = zip(*loader, strict=True)
    return torch.cat(inputs), torch.cat(targets)


def _splits(data: InMemory) -> dict[str, Split]:
    data.setup("fit")
    data.setup("test")
    return {
        "train": _whole(data.train_dataloader()),
        "validation": _whole(data.val_dataloader()),
        "test": _whole(data.test_dataloader()),
    }


def _sorted(split: Split) -> np.ndarray:
    """The samples as rows, in an order of their own: the loader's does not matter."""
    rows = np.concatenate([part.reshape(len(part), -1).double().numpy() for part in split], axis=1)
    return rows[np.lexsort(rows.T)]


def _rows(features: np.ndarray, target: np.ndarray) -> np.ndarray:
    rows = np.concatenate([features.reshape(len(features), -1), target.reshape(len(target), -1)], axis=1)
    return rows[np.lexsort(rows.T)]


def test_digits_are_scaled_by_the_training_split_alone():
    pixels, labels = load_digits(return_X_y=True)
    rows = three_way_split(len(pixels), 0.2, 0.1, 3, labels)
    mean, std = pixels[rows[0]].mean(), pixels[rows[0]].std(ddof=1)
    data = Digits(validation_fraction=0.2, test_fraction=0.1, seed=3)
    for split, chosen in zip(_splits(data).values(), rows, strict=True):
        assert split[0].shape == (len(chosen), 1, 8, 8)
        assert (split[0].dtype, split[1].dtype) == (torch.float32, torch.int64)
        np.testing.assert_allclose(
            _sorted(split), _rows((pixels[chosen] - mean) / std, labels[chosen]), rtol=1e-4, atol=1e-5
        )


def test_digits_are_stratified():
    counts = {name: Counter(split[1].tolist()) for name, split in _splits(Digits()).items()}
    total = Counter(load_digits().target.tolist())
    for name, share in {"train": 0.7, "validation": 0.15, "test": 0.15}.items():
        for digit in range(10):
            assert abs(counts[name][digit] - share * total[digit]) < 1.5


def test_diabetes_is_scaled_by_the_training_split_alone_and_its_target_not_at_all():
    features, target = load_diabetes(return_X_y=True, scaled=False)
    rows = three_way_split(len(target), 0.2, 0.2, 4)
    train = features[rows[0]]
    data = Diabetes(seed=4)
    for split, chosen in zip(_splits(data).values(), rows, strict=True):
        scaled = (features[chosen] - train.mean(axis=0)) / train.std(axis=0, ddof=1)
        assert split[1].shape == (len(chosen), 1)
        np.testing.assert_allclose(split[1].sort(dim=0).values[:, 0].numpy(), np.sort(target[chosen]), rtol=1e-6)
        np.testing.assert_allclose(np.sort(split[0].numpy(), axis=0), np.sort(scaled, axis=0), rtol=1e-3, atol=1e-4)
    assert data.spec.target_mean == pytest.approx(target[rows[0]].mean(), rel=1e-6)
    assert data.spec.target_std == pytest.approx(target[rows[0]].std(ddof=1), rel=1e-5)


@pytest.mark.parametrize(
    ("data", "spec"),
    [
        (Digits, DataSpec((1, 8, 8), 10, 10)),
        (Diabetes, DataSpec((10,), None, 1)),
        (FashionMNIST, DataSpec((1, 28, 28), 10, 10)),
    ],
)
def test_a_data_set_knows_its_shapes_before_it_reads_a_file(data: type[InMemory], spec: DataSpec):
    assert data.spec == spec
    assert spec.task == ("regression" if data is Diabetes else "classification")


def test_two_diabetes_sets_keep_their_own_scale():
    one, other = Diabetes(seed=1), Diabetes(seed=2)
    assert one.spec.target_mean != other.spec.target_mean
    assert Diabetes.spec.target_mean == 0.0


# ------------------------------------------------------------------------------------------------ the loaders


def _order(data: InMemory, epochs: int = 3) -> list[list[float]]:
    """The samples of each epoch in their order, each by its checksum."""
    data.setup("fit")
    loader = data.train_dataloader()
    return [[float(row.sum()) for inputs, _ in loader for row in inputs] for _ in range(epochs)]


class _Small(InMemory):
    """Sample i is the number i."""

    spec = DataSpec((1,), None, 1)
    tests_read = 0

    def __init__(self, batch_size: int = 5, num_workers: int = 0, drop_last: bool = False, seed: int = 0) -> None:
        super().__init__(batch_size, num_workers, drop_last, seed)

    def load(self) -> tuple[Split, Split]:
        return self._numbers(23), self._numbers(7)

    def load_test(self) -> Split:
        self.tests_read += 1
        return self._numbers(4)

    @staticmethod
    def _numbers(count: int) -> Split:
        return torch.arange(float(count)).unsqueeze(1), torch.arange(float(count)).unsqueeze(1)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning", "ignore:.*suggested max number of worker.*")
def test_the_number_of_workers_does_not_change_the_order_of_any_epoch():
    assert _order(_Small(num_workers=0, seed=3)) == _order(_Small(num_workers=2, seed=3))


def test_the_seed_alone_fixes_the_order():
    torch.manual_seed(1)
    one = _order(_Small(seed=3))
    torch.manual_seed(2)
    assert _order(_Small(seed=3)) == one
    assert _order(_Small(seed=4)) != one


def test_loading_draws_nothing_from_the_global_generator():
    data = _Small()
    before = torch.get_rng_state()
    _order(data)
    list(data.val_dataloader())
    assert torch.equal(torch.get_rng_state(), before)


def test_every_epoch_has_each_sample_once_in_another_order():
    epochs = _order(_Small())
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert epochs[0] != sorted(epochs[0])


def test_validation_and_test_keep_their_order():
    data = _Small()
    data.setup("validate")
    data.setup("test")
    assert _whole(data.val_dataloader())[0].flatten().tolist() == list(range(7))
    assert _whole(data.test_dataloader())[0].flatten().tolist() == list(range(4))


@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [5, 5, 5, 5, 3]), (True, [5, 5, 5, 5])])
def test_the_last_smaller_batch_is_kept_unless_it_is_to_be_dropped(drop_last: bool, sizes: list[int]):
    data = _Small(drop_last=drop_last)
    data.setup("fit")
    assert [len(inputs) for inputs, _ in data.train_dataloader()] == sizes
    assert [len(inputs) for inputs, _ in data.val_dataloader()] == [5, 2]  # nothing is dropped here


def test_the_test_split_is_read_once_and_only_to_test():
    data = _Small()
    for stage in ("fit", "validate", "fit"):
        data.setup(stage)
    assert data.tests_read == 0
    data.setup("test")
    data.setup("test")
    assert data.tests_read == 1


@pytest.mark.parametrize(
    ("batch", "ranks", "accumulated", "micro"),
    [(12, 1, 1, 12), (12, 2, 1, 6), (12, 1, 3, 4), (12, 2, 3, 2), (6, 2, 3, 1), (13, 2, 3, None), (5, 2, 3, None)],
)
def test_the_batch_is_that_of_the_whole_job(batch: int, ranks: int, accumulated: int, micro: int | None):
    data: Any = _Small(batch_size=batch)
    data.trainer = SimpleNamespace(world_size=ranks, accumulate_grad_batches=accumulated)
    data.setup("fit")
    data.setup("test")
    for make in (data.train_dataloader, data.val_dataloader, data.test_dataloader):
        if micro is not None:
            assert make().batch_size == micro
            continue
        with pytest.raises(UserError) as caught:
            make()
        assert str(caught.value) == (
            f"data.batch_size={batch} is the batch of the whole job: {ranks} ranks x {accumulated} accumulated batches "
            "(trainer.accumulate_grad_batches) cannot share it equally"
        )


def test_a_batch_of_more_than_all_is_refused():
    data = _Small(batch_size=24)
    data.setup("fit")
    with pytest.raises(UserError, match=r"^data.batch_size=24 is more than the 23 training samples$"):
        data.train_dataloader()


def test_a_batch_of_all_is_one_batch():
    data = _Small(batch_size=23)
    data.setup("fit")
    assert len(data.train_dataloader()) == 1


@pytest.mark.parametrize("data", [Digits, Diabetes, FashionMNIST])
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"batch_size": 0}, "batch_size is 0; a batch needs at least 1 sample"),
        ({"num_workers": -1}, "num_workers is -1; it must be at least 0"),
        ({"validation_fraction": 0.0}, "validation_fraction"),
        ({"validation_fraction": 1.0}, "validation_fraction"),
    ],
)
def test_an_impossible_number_is_refused_by_name(data: type[InMemory], arguments: dict[str, Any], sentence: str):
    with pytest.raises(ValueError, match=sentence):
        data(**arguments)


def test_a_batch_is_the_samples_one_by_one():
    data = Tensors(torch.arange(6.0).reshape(3, 2), torch.arange(3))
    assert len(data) == 3
    inputs, targets = data.__getitems__([2, 0])
    assert inputs.tolist() == [data[2][0].tolist(), data[0][0].tolist()]
    assert targets.tolist() == [2, 0]


# --------------------------------------------------------------------------------------------- Fashion-MNIST

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def _idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def images(tmp_path: Path) -> dict[str, np.ndarray]:
    """Sixty training and twenty test images, brighter ones, packed as Debian packs them."""
    generator = np.random.default_rng(0)
    arrays = {
        NAMES[0]: generator.integers(0, 200, (60, 28, 28), dtype=np.uint8),
        NAMES[1]: (np.arange(60) % 10).astype(np.uint8),
        NAMES[2]: generator.integers(200, 256, (20, 28, 28), dtype=np.uint8),
        NAMES[3]: (np.arange(20) % 10).astype(np.uint8),
    }
    (tmp_path / "debian").mkdir()
    for name, array in arrays.items():
        (tmp_path / "debian" / f"{name}.gz").write_bytes(gzip.compress(_idx(array)))
    return arrays


def _fashion(tmp_path: Path, **arguments: Any) -> FashionMNIST:
    folders = {"root": str(tmp_path / "data"), "packaged": str(tmp_path / "debian")}
    return FashionMNIST(**folders, **{"validation_fraction": 1 / 3, "batch_size": 8, **arguments})


def test_debians_files_are_unpacked_into_the_root(images: dict[str, np.ndarray], tmp_path: Path):
    _fashion(tmp_path).prepare_data()
    raw = tmp_path / "data" / "FashionMNIST" / "raw"
    assert {file.name: file.read_bytes() for file in raw.iterdir()} == {
        name: _idx(array) for name, array in images.items()
    }


def test_files_that_are_there_are_not_touched(images: dict[str, np.ndarray], tmp_path: Path):
    raw = tmp_path / "data" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name in NAMES:
        (raw / name).write_bytes(b"mine")
    _fashion(tmp_path, download=True).prepare_data()
    assert {file.read_bytes() for file in raw.iterdir()} == {b"mine"}


def test_files_that_are_there_in_part_are_completed(images: dict[str, np.ndarray], tmp_path: Path):
    raw = tmp_path / "data" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / NAMES[0]).write_bytes(_idx(images[NAMES[0]]))
    _fashion(tmp_path).prepare_data()
    assert sorted(file.name for file in raw.iterdir()) == sorted(NAMES)


def test_files_that_are_nowhere_are_a_sentence_with_every_way_out(tmp_path: Path):
    with pytest.raises(UserError) as caught:
        _fashion(tmp_path).prepare_data()
    for word in (f"data.root={tmp_path / 'data'}", str(tmp_path / "debian"), "dataset-fashion-mnist", "data.download"):
        assert word in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_download_is_made_only_where_it_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    class Downloads:
        resources = fashion_mnist.datasets.FashionMNIST.resources

        def __init__(self, root: str, download: bool) -> None:
            asked.append((root, download))

    monkeypatch.setattr(fashion_mnist, "datasets", SimpleNamespace(FashionMNIST=Downloads))
    with pytest.raises(UserError):
        _fashion(tmp_path).prepare_data()
    assert asked == []
    _fashion(tmp_path, download=True).prepare_data()
    assert asked == [(str(tmp_path / "data"), True)]


def test_fashion_is_scaled_by_the_training_split_alone(images: dict[str, np.ndarray], tmp_path: Path):
    data = _fashion(tmp_path, seed=2)
    data.prepare_data()
    pixels, labels = images[NAMES[0]].astype(float), images[NAMES[1]]
    kept, held_out = hold_out(60, 1 / 3, 2, labels)
    mean, std = pixels[kept].mean(), pixels[kept].std(ddof=1)
    expected = {
        "train": (pixels[kept], labels[kept]),
        "validation": (pixels[held_out], labels[held_out]),
        "test": (images[NAMES[2]].astype(float), images[NAMES[3]]),
    }
    for name, split in _splits(data).items():
        assert split[0].shape[1:] == (1, 28, 28)
        raw, classes = expected[name]
        np.testing.assert_allclose(_sorted(split), _rows((raw - mean) / std, classes), rtol=1e-4, atol=1e-5)
    assert Counter(labels[held_out].tolist()) == dict.fromkeys(range(10), 2)


def test_the_test_files_are_not_read_before_testing(images: dict[str, np.ndarray], tmp_path: Path):
    data = _fashion(tmp_path)
    data.prepare_data()
    for name in NAMES[2:]:
        (tmp_path / "data" / "FashionMNIST" / "raw" / name).write_bytes(b"not an IDX file")
    data.setup("fit")
    data.setup("validate")
    assert len(_whole(data.train_dataloader())[0]) == 40
    with pytest.raises(AssertionError):  # torchvision's: it is now that they are read
        data.setup("test")


# ------------------------------------------------------------------------------------- foreign data modules


class _Foreign(pl.LightningDataModule):
    def __init__(self, *tensors: torch.Tensor, **attributes: Any) -> None:
        super().__init__()
        self.tensors = tensors
        self.stages: list[str] = []
        for name, value in attributes.items():
            setattr(self, name, value)

    def prepare_data(self) -> None:
        self.stages.append("prepare")

    def setup(self, stage: str) -> None:
        self.stages.append(stage)

    def train_dataloader(self) -> DataLoader:
        dataset: Any = TensorDataset(*self.tensors)
        if hasattr(self, "classes"):
            dataset.classes = self.classes
        return DataLoader(dataset, batch_size=4, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        raise AssertionError("one batch of the training split tells all")

    test_dataloader = val_dataloader


IMAGES = torch.zeros(9, 3, 5, 6)
LABELS = torch.arange(9) % 3

FOREIGN = {
    "a number of classes": (_Foreign(IMAGES, LABELS, num_classes=3), DataSpec((3, 5, 6), 3, 3)),
    "the names of the classes": (_Foreign(IMAGES, LABELS, classes=["a", "b", "c", "d"]), DataSpec((3, 5, 6), 4, 4)),
    "numbers": (_Foreign(torch.zeros(9, 7), torch.zeros(9, 2)), DataSpec((7,), None, 2)),
    "numbers without a column": (_Foreign(torch.zeros(9, 7), torch.zeros(9)), DataSpec((7,), None, 1)),
}


@pytest.mark.parametrize(("data", "spec"), FOREIGN.values(), ids=FOREIGN.keys())
def test_a_foreign_module_is_known_by_its_first_batch(data: _Foreign, spec: DataSpec):
    before = torch.get_rng_state()
    data.stages.clear()
    assert spec_of(data) == spec
    assert data.stages == ["prepare", "fit"]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (_Foreign(IMAGES, LABELS), "data: _Foreign gives class labels but not how many classes"),
        (_Foreign(IMAGES), r"must yield pairs of tensors \(input, target\), and gives list"),
        (_Foreign(IMAGES, LABELS, LABELS), r"must yield pairs of tensors \(input, target\), and gives list"),
    ],
    ids=["no classes", "no target", "three parts"],
)
def test_a_foreign_module_that_says_too_little_is_a_sentence(data: _Foreign, sentence: str):
    with pytest.raises(UserError, match=sentence):
        spec_of(data)


def test_a_module_with_a_spec_is_not_asked_for_a_batch():
    spec = DataSpec((1,), 2, 2)
    data = _Foreign(IMAGES, LABELS, spec=spec)
    assert spec_of(data) is spec
    assert data.stages == []
