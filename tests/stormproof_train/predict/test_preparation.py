"""What the data module feeds a network is what is read off the file for it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_diabetes, load_digits

from stormproof_train.data.csv import CSV
from stormproof_train.data.diabetes import Diabetes
from stormproof_train.data.digits import Digits
from stormproof_train.data.fashion_mnist import FashionMNIST
from stormproof_train.data.image_folder import ImageFolder
from stormproof_train.data.mnist1d import MNIST1D
from stormproof_train.errors import UserError
from stormproof_train.predict.images import ImagePreprocessor
from stormproof_train.predict.samples import read_samples
from tests.support.csv_tables import make_csv, people_csv
from tests.support.fashion_files import write_dataset
from tests.support.image_trees import write_pets

CLOSE = {"rtol": 0, "atol": 1e-6}


def _write_preparation(data: Any) -> dict[str, Any]:
    """As it comes back from an artifact."""
    return json.loads(json.dumps(data.preparation, allow_nan=False))


def _read(path: Path, data: Any) -> np.ndarray:
    return np.concatenate([part.inputs for part in read_samples(path, _write_preparation(data))])


@pytest.mark.parametrize("size", [(12, 10), (10, 17), (8, 8), (31, 8)], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_of_a_folder(size: tuple[int, int], channels: Any, tmp_path: Path):
    tree = write_pets(tmp_path / "pets", count=8)
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    for name, mode in (("odd", "RGB"), ("grey", "L"), ("clear", "RGBA"), ("few", "P")):
        Image.fromarray(pixels).convert(mode).save(tree / "cat" / f"{name}.png")
    data = ImageFolder(str(tree), image_size=8, channels=channels)
    data.setup("fit")
    data.setup("test")
    expected = {}
    for split in (data._train, data._validation, data._test):
        expected |= {file: split[index][0].numpy() for index, (file, _) in enumerate(split._samples)}
    assert len(expected) == 28
    preparation = ImagePreprocessor.from_dict(_write_preparation(data))
    for file, inputs in expected.items():
        assert np.allclose(preparation.load(Path(file)), inputs, **CLOSE), file
    (part,) = read_samples(tree, _write_preparation(data))
    assert (part.unit, part.names) == ("file", sorted(expected))
    assert np.allclose(part.inputs, [expected[name] for name in part.names], **CLOSE)


def test_a_row_of_a_table(tmp_path: Path):
    data = make_csv(tmp_path, people_csv(200))
    data.setup("fit")
    data.setup("test")
    (part,) = read_samples(tmp_path / "table.csv", _write_preparation(data))
    assert (part.unit, part.names[0], part.names[-1]) == ("row", "1", "200")
    for rows, (inputs, _) in zip(data._rows, (data._train, data._validation, data._test), strict=True):
        assert np.allclose(part.inputs[rows], inputs.numpy(), **CLOSE)


def test_a_table_needs_no_target_and_no_order_of_columns(tmp_path: Path):
    data = make_csv(tmp_path, people_csv())
    expected = _read(tmp_path / "table.csv", data)
    cells = pd.read_csv(tmp_path / "table.csv", dtype=str)[["city", "height", "age"]]
    cells.to_csv(tmp_path / "new.csv", index=False)
    assert np.array_equal(_read(tmp_path / "new.csv", data), expected)


def test_a_table_as_it_is_written_elsewhere(tmp_path: Path):
    text = "größe;wo;y\n" + "".join(f"{n},5;{'Köln' if n % 2 else 'Rom'};{n},25\n" for n in range(40))
    (tmp_path / "table.csv").write_bytes(text.encode("cp1252"))
    data = CSV(str(tmp_path / "table.csv"), target="y", separator=";", decimal=",", encoding="cp1252")
    data.setup("fit")
    assert np.allclose(_read(tmp_path / "table.csv", data)[data._rows[0]], data._train[0].numpy(), **CLOSE)


@pytest.mark.parametrize("columns", [["age"], ["city"], ["height"], ["city", "age"]], ids=str)
def test_a_table_of_numbers_or_of_categories_alone(columns: list[str], tmp_path: Path):
    data = make_csv(tmp_path, people_csv(), features=columns)
    data.setup("fit")
    assert np.allclose(_read(tmp_path / "table.csv", data)[data._rows[0]], data._train[0].numpy(), **CLOSE)


def test_a_column_without_a_value_in_training(tmp_path: Path):
    data = make_csv(tmp_path, people_csv())
    rows = pd.read_csv(tmp_path / "table.csv", dtype=str)
    rows.loc[data._rows[0], "height"] = None
    data = make_csv(tmp_path, rows.to_csv(index=False))
    data.setup("fit")
    data.setup("test")
    read = _read(tmp_path / "table.csv", data)
    for split, (inputs, _) in zip(data._rows, (data._train, data._validation, data._test), strict=True):
        assert np.allclose(read[split], inputs.numpy(), **CLOSE)


def test_a_value_that_no_training_row_had_is_told(tmp_path: Path):
    data = make_csv(tmp_path, people_csv())
    (tmp_path / "new.csv").write_text("age,city,height\n20,Bonn,150\n30,Kiel,151\n,Rome,152\n")
    (part,) = read_samples(tmp_path / "new.csv", _write_preparation(data))
    (sentence,) = part.warnings
    assert sentence.startswith("2 of 3 rows have a value of 'city' that is not in the training split ('Bonn' …)")


def test_the_patients_of_diabetes(tmp_path: Path):
    data = Diabetes()
    data.setup("fit")
    patients: Any = load_diabetes(scaled=False, as_frame=True)
    patients.frame.to_csv(tmp_path / "patients.csv", index=False)
    read = _read(tmp_path / "patients.csv", data)
    assert np.allclose(read[data._train_rows], data._train[0].numpy(), **CLOSE)
    assert np.allclose(read[data._validation_rows], data._validation[0].numpy(), **CLOSE)


def test_an_image_of_fashion(tmp_path: Path):
    arrays = write_dataset(tmp_path / "packed", np.arange(60) % 10)
    data = FashionMNIST(root=str(tmp_path / "root"), packaged=str(tmp_path / "packed"), validation_fraction=0.5)
    data.prepare_data()
    data.setup("test")
    (tmp_path / "images").mkdir()
    for index, image in enumerate(arrays["t10k-images-idx3-ubyte"]):
        Image.fromarray(image).save(tmp_path / "images" / f"{index:02}.png")
    assert np.allclose(_read(tmp_path / "images", data), data._test[0].numpy(), **CLOSE)


def test_a_scan_of_a_digit(tmp_path: Path):
    data = Digits()
    data.setup("test")
    images: Any = load_digits().images
    (tmp_path / "images").mkdir()
    for row in data._test_rows:
        Image.fromarray((images[row] * 15).astype(np.uint8)).save(tmp_path / "images" / f"{row:04}.png")
    preparation = _write_preparation(data) | {
        "white": 17.0
    }  # sixteen levels of 255 are no whole numbers, seventeen are
    inputs = np.concatenate([part.inputs for part in read_samples(tmp_path / "images", preparation)])
    assert np.allclose(inputs, data._test[0].numpy(), **CLOSE)
    Image.new("L", (8, 8), 255).save(tmp_path / "white.png")
    assert np.allclose(_read(tmp_path / "white.png", data), (16 - data._mean_std[0]) / data._mean_std[1], **CLOSE)


def test_signals_come_as_arrays(tmp_path: Path):
    signals = np.zeros((3, 1, 40), np.float32)
    np.save(tmp_path / "signals.npy", signals)
    assert np.array_equal(_read(tmp_path / "signals.npy", MNIST1D()), signals)
    (tmp_path / "signals.csv").write_text("1,2\n")
    with pytest.raises(UserError, match=r"this network needs an \.npy or \.npz file with arrays"):
        _read(tmp_path / "signals.csv", MNIST1D())


def test_many_samples_come_in_parts(tmp_path: Path):
    np.savez(tmp_path / "many.npz", inputs=np.arange(600).reshape(600, 1), labels=np.arange(600))
    parts = list(read_samples(tmp_path / "many.npz", None))
    assert [len(part.inputs) for part in parts] == [256, 256, 88]
    assert [name for part in parts for name in part.names] == [str(row + 1) for row in range(600)]
    assert np.concatenate([part.inputs for part in parts]).ravel().tolist() == list(range(600))
