"""What a compression prints."""

import pytest

from stormproof_train.compression.report.compression_page import compression_page
from stormproof_train.compression.summary import tell
from tests.support.made_compressions import BEYOND, ORIGINAL, made_artifact, made_compression, made_regression

CASES = {
    "several": made_compression(skipped=["no dense layer gets smaller by it"]),
    "nothing within": made_compression(BEYOND, best=None, why_none="no artifact keeps to budget=1pp"),
    "the original alone": made_compression([ORIGINAL]),
    "regression": made_regression(),
    "target only": made_compression(budget=None, target={"speedup": 3.0}),
    "a long name": made_compression([ORIGINAL, made_artifact("pruned-2x-factored-4x-weights-int8" * 3, 0.001, 2.0)]),
}


@pytest.mark.parametrize("name", CASES)
def test_the_table_has_room_in_a_hundred_and_twenty_columns_and_the_sentences_of_the_page_follow(
    name: str, capsys: pytest.CaptureFixture[str]
):
    numbers = CASES[name]
    tell(numbers)
    told = capsys.readouterr().out
    table, sentences = told.rsplit("┘\n", 1)
    assert all(len(line) <= 120 for line in table.splitlines())
    assert list(compression_page(numbers).sentences) == [
        line for line in sentences.splitlines() if not line.startswith(("not done: ", "beyond: ", "beaten: "))
    ]
    assert ("not done: no dense layer gets smaller by it" in sentences) == (name == "several")


def _cells(told: str, name: str) -> list[str]:
    (line,) = (line for line in told.splitlines() if line.startswith(f"│ {name} "))
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_each_artifact_has_a_line_that_says_what_is_against_it(capsys: pytest.CaptureFixture[str]):
    tell(CASES["several"])
    told = capsys.readouterr().out
    lost = "0.40 (0.00 to 0.80)"
    assert _cells(told, "pruned-2x-int8") == [
        "pruned-2x-int8", "0.9690", lost, "108 kB", "2.4 M", "0.313", "4.38", "3.1", "best",
    ]  # fmt: skip
    assert _cells(told, "pruned-4x")[-1] == "beyond"
    assert _cells(told, "pruned-1.5x")[-1] == "beaten"
    assert "beaten: on validation another is nowhere worse and somewhere better" in told


def test_where_the_test_split_was_not_read_the_table_says_validation(capsys: pytest.CaptureFixture[str]):
    tell(CASES["regression"])
    told = capsys.readouterr().out
    assert "validation" in told.splitlines()[2]
    assert _cells(told, "pruned-2x-int8")[1] == "53.7200"
