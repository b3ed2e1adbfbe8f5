import gzip
from pathlib import Path
from typing import Any

import pytest

from stormproof_train.data.csv import CSV
from stormproof_train.errors import UserError
from tests.support.csv_tables import make_csv, people_csv

NUMBERS = "x,y\n" + "".join(f"{row},{row / 2}\n" for row in range(40))
NAMES = "name,y\n" + "".join(f"person {row},{row % 2}\n" for row in range(40))

MISTAKES: dict[str, tuple[str | bytes, dict[str, Any], str]] = {
    "no text": (b"x,y\n1,\xff\n", {}, "is not text in utf-8 (line 2). Set data.encoding (cp1252"),
    "an Excel file": (b"PK\x03\x04\x14\0\0", {}, "is a ZIP archive or an Excel workbook, not a text file"),
    "a truncated gzip file": (gzip.compress(NUMBERS.encode())[:-9], {}, "is a damaged gzip file"),
    "an empty file": ("", {}, "table.csv is empty"),
    "only blank lines": ("\n  \n\n", {}, "table.csv is empty"),
    "names alone": ("x,y\n", {}, "has column names but no rows"),
    "a row too long": ("x,y\n1,2\n1,2,3\n", {}, "is not a table: Expected 2 fields in line 3, saw 3. If data.sep"),
    "tabs": ("x\ty\n1\t2\n", {}, r"""If data.separator=',' is wrong, set "data.separator='\t'" or"""),
    "a row too short": ("x,z,y\n1,2,3\n1,2\n", {}, "line 3 has 2 cells, but line 1 has 3 names. Add the missing"),
    "a quote left open": ('x,y\n"1,2\n3,4\n', {}, "is not a table: EOF inside string"),
    "another separator": ("x;y\n1;2\n", {}, "has no column 'y'. Columns: x;y. The file has only one column. If data.s"),
    "no such target": ("age,outcome\n1,2\n", {"target": "outcom"}, "has no column 'outcom'. Columns: outcome, age"),
    "no such feature": (NUMBERS, {"features": ["z"]}, "data.features: data.path="),
    "no such category": (NUMBERS, {"categorical": ["z"]}, "data.categorical: data.path="),
    "a category that is no feature": (NUMBERS, {"categorical": ["y"]}, "data.categorical: 'y' is not one of the"),
    "the target as a feature": (NUMBERS, {"features": ["x", "y"]}, "data.features: 'y' is the target and cannot be"),
    "two columns of a name": ("x,x,y\n1,2,3\n", {}, "two columns are named 'x' (line 1). Rename one"),
    "nothing beside the target": ("y\n1\n2\n", {}, "the table has no columns except the target 'y'"),
    "no features chosen": (NUMBERS, {"features": []}, "the table has no columns except the target 'y'"),
    "a column without a name": (",x,y\n0,1,2\n1,2,3\n", {}, "column 1 has no name (perhaps it contains row numbers)."),
    "a column without a value": ("x,z,y\n1,,2\n1,,3\n", {}, "the column 'z' has no values. Exclude it with"),
    "a missing target": (
        "x,y\n1,2\n\n1,\n" + "1,3\n" * 5 + "2,NA\n",
        {},
        "the target 'y' is missing in 2 of 8 rows (lines 4, 10). Add the values, or remove these rows",
    ),
    "many missing targets": ("x,y\n1,2\n" + "1,\n" * 9, {}, "in 9 of 10 rows (lines 3, 4, 5, 6, 7 and 4 more)"),
    "a word in a regression": (
        NUMBERS + "41,tall\n", {"task": "regression"}, "the target 'y' must be a finite number, got 'tall' on line"
    ),
    "an infinite target": (NUMBERS + "41,inf\n", {}, "the target 'y' must be a finite number, got 'inf' on line"),
    "an infinite feature": (NUMBERS + "-inf,2\n", {}, "the column 'x' must be a finite number, got '-inf' on"),
    "a target that float32 rounds": (
        "x,y\n" + "".join(f"{row},{2e8 + 20 * row}\n" for row in range(100)),
        {},
        "is about 2e+08 with standard deviation 577, but float32 numbers of this size differ by at least 16.",
    ),
    "a target that float32 takes for one": (
        "x,y\n" + "".join(f"{row},{1_700_000_000 + 20 * row}\n" for row in range(40)), {}, "differ by at least 128."
    ),
    "a huge target": (
        NUMBERS + "41,1e38\n", {}, "the target 'y' must be at most 1e+15 in absolute value (divide it), got '1e38' on"
    ),
    "a huge feature": (NUMBERS + "1e300,2\n", {}, "the column 'x' must be at most 3.4e+38 in absolute value"),
    "a target with a typo": (
        NUMBERS.replace("19.0", "19.O"), {}, "data.task=regression if the numbers are not classes and correct '19.O'"
    ),
    "a feature twice": (NUMBERS, {"features": ["x", "x"]}, "data.features: 'x' occurs twice. Remove one of them"),
    "a category twice": (NUMBERS, {"categorical": ["x", "x"]}, "data.categorical: 'x' occurs twice. Remove one of"),
    "one class only": ("x,y\n1,a\n2,a\n3,a\n4,a\n", {}, "all 4 samples have class 'a'. Classification needs"),
    "a class too small": (
        people_csv() + "30,Rome,170,maybe\n", {}, "'y': class 'maybe' has 1 sample, but each of the 3 splits"
    ),
    "numbers that are no classes": ("x,y\n" + "1,3\n2,4\n" * 9 + "3,5\n", {}, "or set data.task=regression if the"),
    "a constant target": ("x,y\n" + "1,0.5\n" * 9, {}, "the target 'y' is 0.5 in all 7 training rows, so there is"),
    "too few rows": ("x,y\n1,0.5\n2,1.5\n", {}, "2 samples cannot be divided into 3 splits"),
    "too few for the classes": ("x,y\n" + "1,a\n2,b\n3,c\n" * 3, {}, "into 8 and 1, but each part needs at least 3"),
    "a name for each row": (
        NAMES,
        {},
        "the column 'name' is not numeric (line 2: 'person 0') and has 40 different values in 40 rows, like a name or",
    ),
    "fractions that leave nothing": (NUMBERS, {"test_fraction": 0.9}, "have a sum below 1"),
    "a separator of two": (NUMBERS, {"separator": "::"}, r"`separator` must be one character (\t for a tab), got '::'"),
    "a decimal comma": (
        NUMBERS.replace(",", ";").replace(".5", ",5"),
        {"separator": ";", "task": "regression"},
        """got '0,5' on line 3 (for decimal commas, set "data.decimal=','\")""",
    ),
    "a point where commas are decimal": (
        NUMBERS.replace(",", ";").replace(".0", ",0"),
        {"separator": ";", "decimal": ",", "task": "regression"},
        "the target 'y' must be a finite number, got '0,5' on line 3",
    ),
    "a decimal sign that separates": (NUMBERS, {"decimal": ","}, "must be one sign other than the separator ','"),
    "an unknown encoding": (NUMBERS, {"encoding": "utf-7000"}, "`encoding` must be a Python encoding"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "arguments", "sentence"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_bad_table_is_one_sentence(text: str | bytes, arguments: dict[str, Any], sentence: str, tmp_path: Path):
    (tmp_path / "table.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises((UserError, ValueError)) as excinfo:
        CSV(str(tmp_path / "table.csv"), **{"target": "y", **arguments})
    assert sentence in str(excinfo.value)
    assert "\n" not in str(excinfo.value)


def test_a_file_that_is_not_there_is_told_with_the_folder_it_was_looked_for_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as excinfo:
        CSV("no.csv", target="y")
    assert str(excinfo.value) == f"data.path=no.csv cannot be read (from {tmp_path}): No such file or directory"
    with pytest.raises(UserError, match=r"^data.path=\. cannot be read .*: Is a directory$"):
        CSV(".", target="y")


OTHER_FILES = {
    "another class": ("age,city,height,y\n1,Rome,2,yes\n1,Rome,2,maybe\n", "class 'maybe' (line 3) does not occur in"),
    "no target": ("age,city,height\n1,Rome,2\n", "data.target: data.test_path="),
    "no feature": ("age,city,y\n1,Rome,yes\n", "has no column 'height'. Columns: "),
    "a word for a number": ("age,city,height,y\n1,Rome,tall,yes\n", "the column 'height' must be a finite"),
    "a missing target": ("age,city,height,y\n1,Rome,2,\n", "is missing in 1 of 1 rows (line 2)"),
    "an empty file": ("", "test.csv is empty"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "sentence"), OTHER_FILES.values(), ids=OTHER_FILES.keys())
def test_a_bad_test_file_is_told_before_anything_is_trained(text: str, sentence: str, tmp_path: Path):
    (tmp_path / "test.csv").write_text(text)
    with pytest.raises(UserError) as excinfo:
        make_csv(tmp_path, people_csv(), test_path=str(tmp_path / "test.csv"))
    assert sentence in str(excinfo.value)
    assert str(tmp_path / "test.csv") in str(excinfo.value)


def test_a_name_for_each_row_is_taken_where_it_is_said_to_be_meant(tmp_path: Path):
    with pytest.warns(
        UserWarning, match="100% of the (validation|test) rows have a value of 'name' that does not occur"
    ):
        assert len(make_csv(tmp_path, NAMES, categorical=["name"]).input_names) == 28


def test_lines_are_counted_as_an_editor_does(tmp_path: Path):
    text = 'x,y\n1,"two\nlines"\n\n   \n2,"b"\n3,\n'
    with pytest.raises(UserError, match=r"\(line 7\)"):
        make_csv(tmp_path, text)
