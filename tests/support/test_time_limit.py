import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support import time_limit
from tests.support.forked_command import ROOT


@contextmanager
def _fake_clock(file: Path) -> Iterator[None]:
    """Moves time from 100 to 105 s. Does not affect the hook that measures this test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time_limit, "PRESSURE", file)
        patch.setattr(time_limit, "time", SimpleNamespace(monotonic=iter([100.0, 105.0]).__next__))
        yield


def _write(file: Path, seconds: float) -> None:
    file.write_text(f"some avg10=1.00 avg60=1.00 avg300=1.00 total={round(seconds * 1e6)}\nfull avg10=0.00 total=0\n")


def test_time_in_which_a_process_waits_for_a_cpu_does_not_count(tmp_path: Path):
    _write(tmp_path / "cpu", 7.0)
    with _fake_clock(tmp_path / "cpu"):
        stopwatch = time_limit.Stopwatch()
        _write(tmp_path / "cpu", 9.0)
        assert stopwatch.seconds() == pytest.approx(3.0)


def test_where_the_kernel_reports_no_pressure_wall_time_counts(tmp_path: Path):
    with _fake_clock(tmp_path / "missing"):
        assert time_limit.Stopwatch().seconds() == 5.0


def _pytest(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "--max-seconds=0", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
def test_a_default_test_above_the_limit_fails_and_is_named():
    test = "tests/stormproof/checkpoint/test_schedule.py::test_steps_alone_need_no_clock"
    result = _pytest(test)
    assert result.returncode == 1, result.stdout
    assert f"{test} took " in result.stdout
    assert "shorten it or mark it `slow`." in result.stdout


@pytest.mark.slow
def test_a_slow_test_may_take_longer():
    result = _pytest("-m", "slow", "tests/stormproof/data/test_iterable_source.py")
    assert result.returncode == 0, result.stdout
    assert "1 passed" in result.stdout
