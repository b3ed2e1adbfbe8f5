import dataclasses
import gzip
import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from stormproof_train.data.csv import CSV
from stormproof_train.data.spec import DataSpec
from tests.support.csv_tables import make_csv, people_csv
from tests.support.split_arrays import load_splits


def _ages(inputs: torch.Tensor, names: list[str], ages: pd.Series) -> np.ndarray:
    """What ages the scaled ones were, with the mean and the standard deviation of ``ages``."""
    return inputs[:, names.index("age")].double().numpy() * ages.std(ddof=0) + ages.mean()


def test_numbers_are_scaled_and_gaps_filled_by_the_training_split_alone(tmp_path: Path):
    data = make_csv(tmp_path, people_csv(), seed=1)
    assert data.input_names == ["age", "height", "missing:age", "city=", "city=Bern", "city=Oslo", "city=Rome"]
    parts = load_splits(data)
    frame = pd.read_csv(tmp_path / "table.csv").iloc[data._rows[0]]
    inputs = parts["train"][0].double()
    filled = frame.age.fillna(frame.age.median())
    np.testing.assert_allclose(np.sort(_ages(inputs, data.input_names, filled)), np.sort(filled), rtol=1e-5)
    for column in (0, 1, 2):
        assert inputs[:, column].mean().item() == pytest.approx(0, abs=1e-6)
        assert inputs[:, column].std(correction=0).item() == pytest.approx(1, rel=1e-5)
    gaps = inputs[:, 2] > 0
    assert int(gaps.sum()) == int(frame.age.isna().sum()) > 0
    np.testing.assert_allclose(_ages(inputs[gaps], data.input_names, filled), frame.age.median(), rtol=1e-5)


def test_each_row_has_one_category_and_a_missing_one_is_one_too(tmp_path: Path):
    data = make_csv(tmp_path, people_csv())
    frame = pd.read_csv(tmp_path / "table.csv").fillna({"city": ""})
    for split, rows in zip(load_splits(data).values(), data._rows, strict=True):
        categories = split[0][:, 3:]
        assert torch.equal(categories.sum(dim=1), torch.ones(len(rows)))
        counts = Counter(
            data.input_names[3 + index].removeprefix("city=") for index in categories.argmax(dim=1).tolist()
        )
        assert counts == Counter(frame.city.iloc[rows])


def test_a_category_that_training_never_saw_is_none_of_those_it_did(tmp_path: Path):
    (tmp_path / "test.csv").write_text("age,city,height,y\n30,Atlantis,160,yes\n31,Rome,161,no\n")
    data = make_csv(tmp_path, people_csv(), test_path=str(tmp_path / "test.csv"))
    unknown_category, known_category = load_splits(data)["test"][0][:, 3:]
    assert unknown_category.tolist() == [0, 0, 0, 0]
    assert known_category.tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("of_test", ["{}.0", "{}"], ids=["with a point", "without"])
def test_a_number_that_is_a_category_is_the_same_one_in_every_file(of_test: str, tmp_path: Path):
    codes = [*"123A"]
    rows = [f"{code if code == 'A' else code + '.0'},{row % 2}" for row, code in enumerate(codes * 10)]
    (tmp_path / "test.csv").write_text("\n".join(["code,y", *(f"{of_test.format(row % 3 + 1)},1" for row in range(9))]))
    data = make_csv(tmp_path, "\n".join(["code,y", *rows]), test_path=str(tmp_path / "test.csv"))
    assert data.input_names == ["code=1", "code=2", "code=3", "code=A"]
    assert load_splits(data)["test"][0].tolist() == [
        [float(row % 3 == column) for column in range(4)] for row in range(9)
    ]


def test_a_split_with_many_values_that_training_never_saw_is_told(tmp_path: Path):
    rows = [f"30,{'Atlantis' if row > 17 else 'Rome'},160,yes" for row in range(20)]
    (tmp_path / "test.csv").write_text("\n".join(["age,city,height,y", *rows]))
    message = r"test.csv: 10% of the test rows have a value of 'city' that .* \(line 20: 'Atlantis'\)"
    with pytest.warns(UserWarning, match=message):
        make_csv(tmp_path, people_csv(), test_path=str(tmp_path / "test.csv"))


def test_a_gap_where_training_has_none_is_filled_like_the_others(tmp_path: Path):
    (tmp_path / "test.csv").write_text("age,city,height,y\n30,Rome,,yes\n")
    data = make_csv(tmp_path, people_csv(), test_path=str(tmp_path / "test.csv"))
    heights = pd.read_csv(tmp_path / "table.csv").height.iloc[data._rows[0]]
    filled = load_splits(data)["test"][0][0, data.input_names.index("height")].item()
    assert filled == pytest.approx((heights.median() - heights.mean()) / heights.std(ddof=0), abs=1e-6)


def test_splits_are_disjoint_complete_and_stratified(tmp_path: Path):
    data = make_csv(tmp_path, people_csv(), validation_fraction=0.2, test_fraction=0.1)
    assert sorted(np.concatenate(data._rows)) == list(range(60))
    parts = load_splits(data)
    assert [Counter(targets.tolist()) for _, targets in parts.values()] == [{0: 21, 1: 21}, {0: 6, 1: 6}, {0: 3, 1: 3}]


def test_the_seed_fixes_the_split_and_nothing_else_does(tmp_path: Path):
    first, repeated, other_seed = (make_csv(tmp_path, people_csv(), seed=seed) for seed in (1, 1, 2))
    assert [rows.tolist() for rows in first._rows] == [rows.tolist() for rows in repeated._rows]
    assert first._rows[2].tolist() != other_seed._rows[2].tolist()
    for name, split in load_splits(first).items():
        assert all(torch.equal(a, b) for a, b in zip(split, load_splits(repeated)[name], strict=True))


@pytest.mark.filterwarnings("ignore:.*also occur in the training split")  # on purpose
def test_files_of_their_own_are_whole_splits(tmp_path: Path):
    for name, rows in (("validation", 6), ("test", 4)):
        (tmp_path / f"{name}.csv").write_text(people_csv(rows))
    files = {f"{name}_path": str(tmp_path / f"{name}.csv") for name in ("validation", "test")}
    for arguments, sizes in ((files, [60, 6, 4]), ({"test_path": files["test_path"]}, [51, 9, 4])):
        parts = load_splits(make_csv(tmp_path, people_csv(), **arguments))
        assert [len(targets) for _, targets in parts.values()] == sizes


def test_a_regression_keeps_its_target_and_knows_its_scale(tmp_path: Path):
    text = "x,y\n" + "".join(f"{row % 5},{row * 0.5}\n" for row in range(40))
    data = make_csv(tmp_path, text, seed=2, batch_size=7)
    train = np.arange(40)[data._rows[0]] * 0.5
    assert data.classes == []
    expected = DataSpec((1,), None, 1, pytest.approx(train.mean()), pytest.approx(train.std(ddof=1)))
    assert data.spec == dataclasses.replace(expected, target_min=pytest.approx(train.min()))
    targets = load_splits(data)["train"][1]
    assert targets.shape == (28, 1)
    np.testing.assert_allclose(np.sort(targets[:, 0].numpy()), train)


TASKS = {
    "text": ([*"abc"], ["a", "b", "c"]),
    "truth": (["True", "False", "True"], ["False", "True"]),
    "few whole numbers": (["10", "9", "2"], ["2", "9", "10"]),
    "whole numbers with a point": (["1.0", "0", "1"], ["0", "1"]),
    "whole numbers with signs": (["+1", "-0", "1.", "0", "-2.00"], ["-2", "0", "1"]),
    "whole numbers that float64 merges": (
        ["9007199254740993", "9007199254740992"],
        ["9007199254740992", "9007199254740993"],
    ),
    "leading zeros": (["7", "007", "08"], ["007", "7", "08"]),
    "scientific notation": (["1e3", "1000"], ["1000", "1e3"]),
    "dates": (["2024-01-01", "2023-12-31"], ["2023-12-31", "2024-01-01"]),
    "numbers of both kinds and a word": (["1", "1.0", "x"], ["1", "1.0", "x"]),
    "numbers and a word": (["1", "2", "many"], ["1", "2", "many"]),
    "many whole numbers": ([str(number) for number in range(21)], []),
    "fractions": (["0.5", "1", "0.5"], []),
}


@pytest.mark.parametrize(("values", "classes"), TASKS.values(), ids=TASKS.keys())
def test_the_target_decides_the_task_and_classes_are_sorted(values: list[str], classes: list[str], tmp_path: Path):
    rows = [f"{row},{values[row % len(values)]}" for row in range(21 * 4)]
    data = make_csv(tmp_path, "\n".join(["x,y", *rows]))
    assert data.classes == classes
    assert data.spec.num_classes == (len(classes) or None)
    assert data.spec.num_outputs == (len(classes) or 1)


@pytest.mark.parametrize(
    ("labels", "keeps"), [(["2", "1.0", "1"], True), (["b", "a"], True), (["7", "8", "007"], False)]
)
def test_only_runs_whose_labels_were_merged_become_other_runs(labels: list[str], keeps: bool, tmp_path: Path):
    data = make_csv(tmp_path, "\n".join(["x,y", *(f"{row},{labels[row % len(labels)]}" for row in range(40))]))
    digest = hashlib.sha256((tmp_path / "table.csv").read_bytes()).hexdigest()
    assert (data.fingerprint == hashlib.sha256(f"path {digest}\n".encode()).hexdigest()[:16]) is keeps


def test_a_table_compressed_with_gzip_is_read(tmp_path: Path):
    (tmp_path / "table.csv.gz").write_bytes(gzip.compress(people_csv().encode()))
    assert CSV(str(tmp_path / "table.csv.gz"), "y").input_names == make_csv(tmp_path, people_csv()).input_names


def test_the_task_can_be_said(tmp_path: Path):
    text = "x,y\n" + "".join(f"{row},{row % 3}\n" for row in range(30))
    assert make_csv(tmp_path, text).spec.task == "classification"
    assert make_csv(tmp_path, text, task="regression").spec.task == "regression"


@pytest.mark.filterwarnings("ignore:.*like an ID")  # its rows are numbered
def test_columns_are_chosen_and_numbers_can_be_categories(tmp_path: Path):
    text = "x,z,unused,y\n" + "".join(f"{row},{row % 3}.0,,{row % 2}\n" for row in range(30))
    data = make_csv(tmp_path, text, features=["z", "x"], categorical=["z"])
    assert data.input_names == ["x", "z=0", "z=1", "z=2"]


def test_other_separators_encodings_and_line_ends_are_read(tmp_path: Path):
    rows = [f"{row};{'Köln' if row % 2 else 'Zürich'}" for row in range(20)]
    (tmp_path / "t.csv").write_bytes("\r\n".join(["größe; y", *rows]).encode("cp1252"))
    data = CSV(str(tmp_path / "t.csv"), target="y", separator=";", encoding="cp1252")
    assert (data.input_names, data.classes) == (["größe"], ["Köln", "Zürich"])
    (tmp_path / "t.csv").write_text("\n".join(["x\ty", *rows]).replace(";", "\t"), encoding="utf-8-sig")
    assert CSV(str(tmp_path / "t.csv"), target="y", separator=r"\t").input_names == ["x"]


def test_numbers_with_a_decimal_comma_are_read(tmp_path: Path):
    rows = [f"-{row},5;{['Rome', '1,5', '3.2.2024'][row % 3]};{row},25e-1" for row in range(40)]
    data = make_csv(tmp_path, "\n".join(["x;z;y", *rows]), separator=";", decimal=",")
    assert data.input_names == ["x", "z=1.5", "z=3.2.2024", "z=Rome"]
    assert data.spec.num_classes is None
    assert data._features["path"].x.tolist() == [-(row + 0.5) for row in range(40)]


@pytest.mark.filterwarnings("ignore:.*also occur in the training split")  # on purpose
def test_the_fingerprint_is_of_the_content_and_not_of_the_place(tmp_path: Path):
    fingerprint = make_csv(tmp_path, people_csv()).fingerprint
    (tmp_path / "elsewhere").mkdir()
    assert make_csv(tmp_path / "elsewhere", people_csv()).fingerprint == fingerprint
    assert make_csv(tmp_path, people_csv().replace("Rome", "Roma")).fingerprint != fingerprint
    (tmp_path / "test.csv").write_text(people_csv(8))
    tested = make_csv(tmp_path, people_csv(), test_path=str(tmp_path / "test.csv")).fingerprint
    validated = make_csv(tmp_path, people_csv(), validation_path=str(tmp_path / "test.csv")).fingerprint
    assert len({fingerprint, tested, validated}) == 3


def test_blanks_around_a_name_are_none_of_it(tmp_path: Path):
    (tmp_path / "table.csv").write_text("x , y \n" + "".join(f"{row},{row / 7}\n" for row in range(40)))
    data = CSV(str(tmp_path / "table.csv"), target="y")
    assert data.input_names == ["x"]


@pytest.mark.filterwarnings("ignore:.*like an ID")  # its rows are numbered
def test_blanks_around_a_cell_are_none_of_it(tmp_path: Path):
    cells = ["Rome", " Rome", "Rome ", '"Rome "', "NA ", ""]
    rows = [f"{cells[row % 6]},{row},{'yes ' if row % 4 else 'yes' if row % 8 else 'no'}" for row in range(72)]
    data = make_csv(tmp_path, "\n".join(["city,x,y", *rows]))
    assert (data.classes, data.input_names) == (["no", "yes"], ["x", "city=", "city=Rome"])


@pytest.mark.parametrize(("start", "step"), [(1.7e9, 1e5), (2020, 0.5), (-1e14, 1e10)])
def test_targets_far_from_zero_are_kept_where_float32_can_tell_them_apart(start: float, step: float, tmp_path: Path):
    text = "x,y\n" + "".join(f"{row},{start + step * row}\n" for row in range(200))
    targets = load_splits(make_csv(tmp_path, text))["train"][1]
    assert len(targets.unique()) == 140
