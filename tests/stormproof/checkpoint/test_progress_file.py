import struct
import time
from pathlib import Path

import pytest

from stormproof.checkpoint.progress_file import Progress, ProgressFile, read_progress


def test_the_last_step_that_was_written_is_read(tmp_path: Path):
    before = time.time()
    file = ProgressFile(tmp_path / "reached")
    for step in (1, 2, 2**40):
        file.write(step)
    reached_step = read_progress(tmp_path / "reached")  # while it is still open, as after a kill
    file.close()
    assert reached_step is not None
    assert reached_step.step == 2**40
    assert before <= reached_step.time <= time.time()
    assert read_progress(tmp_path / "reached") == reached_step


def test_it_does_not_grow(tmp_path: Path):
    file = ProgressFile(tmp_path / "reached")
    sizes = set()
    for step in range(20):
        file.write(step)
        sizes.add((tmp_path / "reached").stat().st_size)
    file.close()
    assert sizes == {16}


def test_a_new_attempt_that_has_not_come_to_a_step_leaves_what_the_one_before_wrote(tmp_path: Path):
    first = ProgressFile(tmp_path / "reached")
    first.write(7)
    first.close()
    ProgressFile(tmp_path / "reached").close()
    step = read_progress(tmp_path / "reached")
    assert isinstance(step, Progress)
    assert step.step == 7


@pytest.mark.parametrize("content", [None, b"", b"\0" * 15, b"\0" * 17], ids=["none", "empty", "short", "long"])
def test_what_is_not_whole_is_nothing(content: bytes | None, tmp_path: Path):
    if content is not None:
        (tmp_path / "reached").write_bytes(content)
    assert read_progress(tmp_path / "reached") is None


@pytest.mark.parametrize(("step", "when"), [(0, 0.0), (7, -1.0), (-1, 1.7e9), (7, 1e300), (7, float("nan"))])
def test_implausible_content_is_ignored(step: int, when: float, tmp_path: Path):
    (tmp_path / "reached").write_bytes(struct.pack("<qd", step, when))
    assert read_progress(tmp_path / "reached") is None
