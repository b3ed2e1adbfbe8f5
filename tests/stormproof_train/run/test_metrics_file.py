import errno
import io
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning_fabric.utilities.rank_zero import rank_zero_only

from stormproof_train.errors import UserError
from stormproof_train.report.logged import read_series
from stormproof_train.run import metrics_file
from stormproof_train.run.metrics_rows import read_metrics


class MetricsFile(metrics_file.MetricsFile):
    """Closes itself after each row, as Lightning closes it after each stage."""

    def log_metrics(self, *args, **kwargs):
        super().log_metrics(*args, **kwargs)
        self.finalize("success")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(metrics_file, "time", SimpleNamespace(time=lambda: 1700000000.25))
    return tmp_path / "metrics.csv"


def test_each_value_is_one_row_with_its_attempt_step_epoch_and_time(path: Path):
    log = MetricsFile(path, attempt=2)
    log.log_metrics({"train/loss": 0.5, "epoch": 1.0, "optimizer/lr": 1e-3}, step=9)
    log.log_metrics({"val/loss": 0.1 + 0.2}, step=19)
    assert path.read_text() == (
        "attempt,step,epoch,time,name,value\n"
        "2,9,1,1700000000.250,train/loss,0.5\n"
        "2,9,1,1700000000.250,optimizer/lr,0.001\n"
        "2,19,,1700000000.250,val/loss,0.30000000000000004\n"
    )
    assert read_metrics(path) == {
        "train/loss": [(9, 0.5)],
        "optimizer/lr": [(9, 0.001)],
        "val/loss": [(19, 0.30000000000000004)],
    }


def test_nothing_is_written_before_there_is_something_to_write(path: Path):
    log = MetricsFile(path, attempt=1)
    log.log_hyperparams({"seed": 1})
    log.save()
    log.finalize("success")
    assert not path.exists()
    assert (log.name, log.version) == ("metrics", 1)


def test_a_later_attempt_only_appends_and_wins_where_both_have_a_step(path: Path):
    first = MetricsFile(path, attempt=1)
    for step in (1, 2, 3):
        first.log_metrics({"loss": float(step)}, step=step)
    before = path.read_bytes()
    second = MetricsFile(path, attempt=2)
    for step in (3, 4):
        second.log_metrics({"loss": 10.0 * step}, step=step)
    assert path.read_bytes().startswith(before)
    assert path.read_text().count("attempt,step") == 1
    assert read_metrics(path) == {"loss": [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)]}


def test_an_earlier_attempts_late_row_does_not_win(path: Path):
    MetricsFile(path, attempt=2).log_metrics({"loss": 2.0}, step=1)
    MetricsFile(path, attempt=1).log_metrics({"loss": 1.0}, step=1)
    assert read_metrics(path) == {"loss": [(1, 2.0)]}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e-308, 2.0**53 + 2, -0.0])
def test_a_value_comes_back_to_the_last_bit(value: float, path: Path):
    MetricsFile(path, attempt=1).log_metrics({"loss": value}, step=0)
    ((step, back),) = read_metrics(path)["loss"]
    assert step == 0
    assert repr(back) == repr(value)


def test_other_ranks_write_nothing(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    MetricsFile(path, attempt=0).log_metrics({"loss": 1.0}, step=1)
    assert not path.exists()


TORN = b"1,2,0,1700000000.250,train/loss,1.25e-05\n"


@pytest.mark.parametrize("cut", range(1, len(TORN)), ids=lambda cut: TORN[:cut].decode())
def test_a_row_cut_short_is_left_out_and_none_after_it_is_lost(cut: int, path: Path):
    MetricsFile(path, attempt=1).log_metrics({"train/loss": 7.0}, step=1)
    with path.open("ab") as file:
        file.write(TORN[:cut])
    assert read_metrics(path) == {"train/loss": [(1, 7.0)]}
    before = path.read_bytes()
    MetricsFile(path, attempt=2).log_metrics({"train/loss": 8.0}, step=3)
    assert path.read_bytes().startswith(before)
    assert read_metrics(path) == {"train/loss": [(1, 7.0), (3, 8.0)]}


def test_a_heading_cut_short_loses_no_row(path: Path):
    path.write_text("attempt,st")
    MetricsFile(path, attempt=2).log_metrics({"loss": 8.0}, step=3)
    assert read_metrics(path) == {"loss": [(3, 8.0)]}


@pytest.mark.parametrize("where", ["end", "middle", "heading"])
def test_zeros_of_a_power_cut_are_ignored_with_a_warning(where: str, path: Path):
    for step in (1, 2, 3):
        MetricsFile(path, attempt=1).log_metrics({"loss": step}, step=step)
    lines = path.read_bytes().splitlines(keepends=True)
    damaged = {"end": 3, "middle": 2, "heading": 0}[where]
    lines[damaged] = lines[damaged][:3] + bytes(len(lines[damaged]) - (4 if where == "end" else 3))
    lines[damaged] += b"" if where == "end" else b"\n"
    path.write_bytes(b"".join(lines))
    MetricsFile(path, attempt=2).log_metrics({"loss": 4.0}, step=4)
    expected = [(step, float(step)) for step in (1, 2, 3, 4) if step != damaged]
    with pytest.warns(UserWarning, match="ignored rows with zero bytes, probably from a power cut: 1"):
        assert read_metrics(path) == {"loss": expected}
    with pytest.warns(UserWarning, match="power cut: 1"):
        series = read_series(path)["loss"]
    assert series.steps.tolist() == [step for step, _ in expected]


@pytest.mark.parametrize("content", [b"\0\xffgarbage{", b"\0" * 512, b"\0" * 64 + b"\n", b"garbage"])
def test_what_has_no_whole_row_is_not_taken_for_an_empty_file(content: bytes, path: Path):
    path.write_bytes(content)
    with pytest.raises(ValueError, match="it contains no complete row"):
        read_metrics(path)
    with pytest.raises(UserError, match=r"cannot be read as the metrics of a run: it contains no complete row"):
        read_series(path)


def test_a_deleted_file_is_recreated_with_a_warning(path: Path):
    file = metrics_file.MetricsFile(path, attempt=1)
    file.log_metrics({"loss": 1.0}, step=1)
    path.unlink()
    with pytest.warns(UserWarning, match=r"metrics\.csv was deleted during the run\. A new file is started"):
        file.log_metrics({"loss": 2.0}, step=2)
    file.log_metrics({"loss": 3.0}, step=3)
    file.finalize("success")
    assert read_metrics(path) == {"loss": [(2, 2.0), (3, 3.0)]}


NAMES = st.text(st.characters(exclude_categories=["Cc", "Cs"])).filter(lambda name: name != "epoch")
VALUES = st.floats(allow_nan=False)
LOGGED = st.tuples(st.dictionaries(NAMES, VALUES), st.integers(0, 20))


@pytest.mark.slow
@settings(database=None, deadline=None)
@given(st.lists(st.lists(LOGGED, max_size=6), max_size=4))
def test_reading_gives_for_each_step_what_was_logged_last(attempts: list[list[tuple[dict[str, float], int]]]):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.csv"
        path.touch()
        expected: dict[str, dict[int, float]] = {}
        for number, calls in enumerate(attempts, start=1):
            log = MetricsFile(path, number)
            for metrics, step in calls:
                log.log_metrics(metrics, step)
                for name, value in metrics.items():
                    expected.setdefault(name, {})[step] = value
        assert read_metrics(path) == {name: sorted(steps.items()) for name, steps in expected.items()}


def test_one_stage_keeps_the_file_open_and_each_row_is_in_it_at_once(path: Path):
    log = metrics_file.MetricsFile(path, attempt=1)
    for step in (1, 2):
        log.log_metrics({"loss": float(step)}, step=step)
        assert read_metrics(path)["loss"][-1] == (step, float(step))
    log.finalize("success")
    assert path.read_text().count("attempt,step") == 1


class Full:
    """A file on a disk that takes so many bytes more, and then none."""

    def __init__(self, file: io.FileIO) -> None:
        self.file, self.room = file, 0

    def write(self, content: bytes) -> int:
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = self.file.write(content[: self.room])
        self.room -= taken
        return taken

    def fileno(self) -> int:
        return self.file.fileno()

    def close(self) -> None:
        self.file.close()


@pytest.mark.parametrize("room", [0, 1, 30, 50])
def test_rows_that_find_no_room_wait_and_are_written_once(room: int, path: Path):
    log = metrics_file.MetricsFile(path, attempt=1)
    log.log_metrics({"loss": 1.0}, step=1)
    assert log._file is not None
    full = log._file = Full(log._file)
    full.room = room
    with pytest.warns(match="the disk is full; rows wait in memory for storage"):
        log.log_metrics({"loss": 2.0, "a": 2.5}, step=2)
    log.log_metrics({"loss": 3.0}, step=3)  # told once
    log.finalize("success")
    full.room = 10**6
    log.log_metrics({"loss": 4.0}, step=4)
    log.finalize("success")
    MetricsFile(path, attempt=2).log_metrics({"loss": 5.0}, step=5)
    assert read_metrics(path) == {"loss": [(step, float(step)) for step in range(1, 6)], "a": [(2, 2.5)]}
    assert path.read_text().count("\n") == 7


def test_what_is_too_much_to_wait_is_raised(path: Path, monkeypatch: pytest.MonkeyPatch):
    log = metrics_file.MetricsFile(path, attempt=1)
    log.log_metrics({"loss": 1.0}, step=1)
    assert log._file is not None
    log._file = Full(log._file)
    monkeypatch.setattr(metrics_file, "MAX_PENDING_BYTES", 40)
    with pytest.warns(match="the disk is full"):
        log.log_metrics({"loss": 2.0}, step=2)
    with pytest.raises(OSError, match="No space left"):
        log.log_metrics({"loss": 2.0}, step=3)
    log._file.close()


def test_what_is_no_fault_of_storage_is_raised_at_once(path: Path):
    with pytest.raises(OSError, match="No such file"):
        metrics_file.MetricsFile(path.parent / "gone" / "metrics.csv", attempt=1).log_metrics({"loss": 1.0}, step=1)
