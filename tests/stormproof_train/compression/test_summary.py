"""What a compression prints."""

import pytest

from stormproof_train.cli.compress import print_summary
from stormproof_train.compression.results import compression_page
from tests.support.compression_records import (
    ARTIFACTS_OVER_BUDGET,
    ORIGINAL,
    artifact_record,
    compression_record,
    regression_record,
)

CASES = {
    "several": compression_record(skipped=["no dense layer gets smaller by it"]),
    "nothing within": compression_record(ARTIFACTS_OVER_BUDGET, best=None, why_none="no artifact is within budget=1pp"),
    "only the original": compression_record([ORIGINAL]),
    "regression": regression_record(),
    "target only": compression_record(budget=None, target={"speedup": 3.0}),
    "a long name": compression_record(
        [ORIGINAL, artifact_record("pruned-2x-factored-4x-weights-int8" * 3, 0.001, 2.0)]
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_table_has_room_in_a_hundred_and_twenty_columns_and_the_sentences_of_the_page_follow(
    name: str, capsys: pytest.CaptureFixture[str]
):
    numbers = CASES[name]
    print_summary(numbers)
    output = capsys.readouterr().out
    table, sentences = output.rsplit("┘\n", 1)
    assert all(len(line) <= 120 for line in table.splitlines())
    assert list(compression_page(numbers).sentences) == [
        line for line in sentences.splitlines() if not line.startswith(("note: ", "over budget: ", "dominated: "))
    ]
    assert ("note: no dense layer gets smaller by it" in sentences) == (name == "several")


def _cells(output: str, name: str) -> list[str]:
    (line,) = (line for line in output.splitlines() if line.startswith(f"│ {name} "))
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_each_artifact_has_a_line_that_says_what_is_against_it(capsys: pytest.CaptureFixture[str]):
    print_summary(CASES["several"])
    output = capsys.readouterr().out
    lost = "0.40 (0.00 to 0.80)"
    assert _cells(output, "pruned-2x-int8") == [
        "pruned-2x-int8", "0.9690", lost, "108 kB", "2.4 M", "0.313", "4.38", "3.1", "best",
    ]  # fmt: skip
    assert _cells(output, "pruned-4x")[-1] == "over budget"
    assert _cells(output, "pruned-1.5x")[-1] == "dominated"
    assert "dominated: another artifact is nowhere worse and somewhere better on validation" in output


def test_where_the_test_split_was_not_read_the_table_says_validation(capsys: pytest.CaptureFixture[str]):
    print_summary(CASES["regression"])
    output = capsys.readouterr().out
    assert "validation" in output.splitlines()[2]
    assert _cells(output, "pruned-2x-int8")[1] == "53.7200"
