import math
from pathlib import Path

import numpy as np
import pytest

from stormproof_train.errors import UserError
from stormproof_train.report import logged
from stormproof_train.report.logged import read_series
from stormproof_train.run.metrics_file import MetricsFile
from stormproof_train.run.metrics_rows import read_metrics

HEADING = "attempt,step,epoch,time,name,value\n"


def _to_lists(path: Path) -> dict[str, list[tuple[int, float]]]:
    return {
        name: list(zip(series.steps.tolist(), series.values.tolist(), strict=True))
        for name, series in read_series(path).items()
    }


@pytest.mark.parametrize("chunk_rows", [1, 2, logged.CHUNK_ROWS])
@pytest.mark.parametrize(
    "text",
    [
        pytest.param("1,9,0,5.0,loss,0.5\n1,19,,6.0,loss,0.25\n", id="whole rows"),
        pytest.param("1,9,0,5.0,loss,0.5\n1,19,0,6.0,loss,0.2", id="the last one half there"),
        pytest.param("1,9,0,5.0,loss,0.5\n1,19,0,6,,,,,,\n2,19,0,7.0,loss,0.4\n", id="one cut short by a kill"),
        pytest.param("1,9,0,5,loss,0.5\n1,19,0,6,loss,3\n2,9,0,8,loss,0.7\n", id="a later attempt"),
        pytest.param("2,9,0,8,loss,0.7\n1,9,0,5,loss,0.5\n", id="a later attempt that is written first"),
        pytest.param(
            "1,,0,5,loss,0.5\n1,0,0,5,NA,inf\n1,1,0,5,null,-inf\n", id="no step, and names that read as nothing"
        ),
        pytest.param('1,0,0,5,"a ""b"", <script>",1e-300\n', id="a name with signs"),
        pytest.param(
            "1,0,0,5,b,1\n1,0,0,5,a,2\n1,1,0,6,a,3\n1,,0,6,d,9\n1,1,0,6,c,4\n1,1,0,6,b,5\n", id="several names"
        ),
        pytest.param("", id="nothing logged"),
    ],
)
def test_it_reads_what_the_plain_reader_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, chunk_rows: int
):
    monkeypatch.setattr(logged, "CHUNK_ROWS", chunk_rows)
    path = tmp_path / "metrics.csv"
    path.write_text(HEADING + text)
    series = _to_lists(path)
    assert series == read_metrics(path)
    assert list(series) == list(read_metrics(path))  # in order of first occurrence


def test_a_nan_comes_back(tmp_path: Path):
    file = MetricsFile(tmp_path / "metrics.csv", 1)
    file.log_metrics({"loss": math.nan}, step=3)
    file.finalize("success")
    series = read_series(tmp_path / "metrics.csv")["loss"]
    assert (series.steps.tolist(), series.attempts.tolist()) == ([3], [1])
    assert np.isnan(series.values).all()


def test_a_run_that_logged_nothing_has_no_series(tmp_path: Path):
    (tmp_path / "empty.csv").write_bytes(b"")
    assert read_series(tmp_path / "empty.csv") == read_series(tmp_path / "missing.csv") == {}


def test_damaged_rows_are_left_out(tmp_path: Path):
    rows = [
        "one,9,0,5.0,loss,0.5",
        "1,8,0,5.0,loss,0.25",
        "1,9,0,5.0",
        '1,9,0,5.0,"a, b",-1e-05',
        "\ufffd",
        "1,9,0,5.0,loss,nan",
    ]
    (tmp_path / "metrics.csv").write_text(HEADING + "\n".join(rows) + "\n")
    series = read_series(tmp_path / "metrics.csv")
    assert {name: len(values) for name, values in series.items()} == {"loss": 2, "a, b": 1}


def test_what_is_no_file_of_metrics_is_named(tmp_path: Path):
    (tmp_path / "metrics.csv").write_bytes(b"\xff" * 40)
    with pytest.raises(UserError, match=r"metrics.csv cannot be read as the metrics of a run"):
        read_series(tmp_path / "metrics.csv")
