import warnings
from pathlib import Path

import pytest

from tests.support.csv_tables import make_csv

ROWS = range(200)


def _warning_messages(folder: Path, text: str, **arguments: str) -> list[str]:
    with warnings.catch_warnings(record=True) as warning_records:
        warnings.simplefilter("always")
        make_csv(folder, text, **arguments)
    return [str(record.message).removeprefix(f"data.path={folder}/table.csv: ") for record in warning_records]


def _table(first: str, cells: list[object]) -> str:
    """A column, noise as a second feature, and a target that depends on neither."""
    rows = [f"{cell},{row * 7919 % 1009 / 10},{row * 31 % 17 % 2}" for row, cell in enumerate(cells)]
    return "\n".join([f"{first},noise,y", *rows])


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("x", [1000 + row for row in ROWS]),
        ("x", [1000 + row * 77 % 200 for row in ROWS]),
        ("patient_id", [row * row for row in ROWS]),
        ("customerId", [row * row for row in ROWS]),
    ],
    ids=["in order", "in any order", "by its name", "in camel case"],
)
def test_a_column_that_numbers_the_rows_is_a_warning(name: str, cells: list[object], tmp_path: Path):
    assert _warning_messages(tmp_path, _table(name, cells)) == [
        f"the column {name!r} has a different whole number in each row, like an ID. Exclude it with data.features=[…]."
    ]


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("inhabitants", [row * row for row in ROWS]),
        ("id", [row % 150 for row in ROWS]),
        ("id", [row + 0.5 for row in ROWS]),
        ("paid", [row * row for row in ROWS]),
    ],
    ids=["another name", "repeated", "fractions", "a word that ends so"],
)
def test_other_columns_of_numbers_are_no_warning(name: str, cells: list[object], tmp_path: Path):
    assert _warning_messages(tmp_path, _table(name, cells)) == []


def test_decimal_commas_are_a_warning_with_the_setting_that_reads_them(tmp_path: Path):
    cells: list[object] = [f'"{row % 10},{row % 3}"' for row in ROWS]
    (sentence,) = _warning_messages(tmp_path, _table("bmi", cells))
    assert sentence.startswith("the column 'bmi' contains numbers such as '0,0', which are treated as categories. ")
    assert sentence.endswith("Set \"data.decimal=','\".")


@pytest.mark.parametrize("values", [("no", "yes"), ("0", "1"), ("0.0", "1.0")])
def test_a_column_that_equals_the_target_is_a_warning(values: tuple[str, str], tmp_path: Path):
    cells: list[object] = [values[row * 31 % 17 % 2] for row in ROWS]
    text = _table("copy", cells)
    if values[0] == "no":
        text = "\n".join(line[:-1] + {"0": "no", "1": "yes", "y": "y"}[line[-1]] for line in text.splitlines())
    assert _warning_messages(tmp_path, text) == [
        "the column 'copy' equals the target 'y' in all rows. Exclude it with data.features=[…]."
    ]


def test_duplicates_across_splits_are_a_warning(tmp_path: Path):
    header, *rows = _table("x", [row * row for row in ROWS]).splitlines()
    messages = _warning_messages(tmp_path, "\n".join([header, *rows * 4]))
    assert [sentence.partition(" rows also")[0].partition("% of the ")[2] for sentence in messages] == [
        "validation",
        "test",
    ]
    assert all("also occur in the training split" in sentence for sentence in messages)


def test_a_test_file_of_training_rows_is_a_warning(tmp_path: Path):
    text = _table("x", [row * row for row in ROWS])
    (tmp_path / "test.csv").write_text(text)
    messages = _warning_messages(tmp_path, text, test_path=str(tmp_path / "test.csv"))
    assert len(messages) == 1
    assert "% of the test rows also occur in the training split" in messages[0]


def test_rows_that_repeat_because_columns_have_few_values_are_no_warning(tmp_path: Path):
    rows = [f"{row % 5},{row % 3},{row * 31 % 17 % 2}" for row in range(400)]
    assert _warning_messages(tmp_path, "\n".join(["size,colour,y", *rows])) == []


def test_a_column_may_be_named_as_pandas_names_its_own(tmp_path: Path):
    header, *rows = _table("_merge", [row * row for row in ROWS]).splitlines()
    assert len(_warning_messages(tmp_path, "\n".join([header, *rows * 2]))) == 2
