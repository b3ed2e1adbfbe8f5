import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import pytest

from stormproof import GradientNormMonitor, resumable, standard_output
from stormproof.standard_output import discard_unwritten_errors, pipe_is_broken, print_error, print_text
from tests.support.small_fits import LIGHTNING_WARNING_FILTERS, make_loader, make_module, make_trainer

pytestmark = LIGHTNING_WARNING_FILTERS


@pytest.fixture(autouse=True)
def _pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standard_output, "_pipe_is_broken", False)


@contextmanager
def _full() -> Iterator[None]:
    """Standard output that has no space left. Not a fixture, because pytest sets ``sys.stdout`` after them."""
    with Path("/dev/full").open("w", encoding="utf-8") as stream, redirect_stdout(stream):
        yield


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [("utf-8", "1 → 2…é"), ("cp1252", "1 -> 2...é"), ("latin-1", "1 -> 2...é"), ("ascii", "1 -> 2...\\xe9")],
)
def test_characters_that_the_encoding_lacks_are_replaced(encoding: str, expected: str, monkeypatch: pytest.MonkeyPatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    print_text("1 → 2…é")
    assert written.getvalue() == expected.encode(encoding)


def test_a_process_without_standard_output_prints_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdout", None)
    print_text("text")


def test_a_closed_stream_is_replaced_by_the_null_device(monkeypatch: pytest.MonkeyPatch):
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stdout", stream)
    print_text("text")
    print_text("text")
    assert sys.stdout.name == os.devnull
    sys.stdout.close()


def test_a_full_stream_is_a_warning_once(capsys: pytest.CaptureFixture[str]):
    with _full():
        print_text("text")
        print_text("text")
        sys.stdout.flush()
    warning = "warning: standard output cannot be written (No space left on device); later output is discarded\n"
    assert capsys.readouterr().err == warning
    assert not pipe_is_broken()


def test_a_broken_pipe_is_reported(monkeypatch: pytest.MonkeyPatch):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        print_text("text")
        print_text("text")
        assert pipe_is_broken()


def test_a_table_that_cannot_be_printed_does_not_end_a_fit():
    fit = make_trainer(callbacks=[GradientNormMonitor()])
    with _full():
        fit.fit(make_module(), resumable(make_loader()))
    assert fit.state.status == "finished"


class _Tee:
    """Replaces standard output as some programs do: without an encoding and a file descriptor."""

    def __init__(self, *, full: bool = False) -> None:
        self.full, self.text = full, ""

    def write(self, text: str) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        self.text += text

    def flush(self) -> None: ...


def test_a_stream_without_an_encoding_is_written(monkeypatch: pytest.MonkeyPatch):
    tee = _Tee()
    monkeypatch.setattr(sys, "stdout", tee)
    print_text("1 → 2")
    assert tee.text == "1 → 2"


def test_a_full_stream_without_a_file_descriptor_is_replaced(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdout", _Tee(full=True))
    print_text("text")
    print_text("text")
    assert sys.stdout.name == os.devnull
    sys.stdout.close()


def test_text_that_standard_error_cannot_write_is_discarded(monkeypatch: pytest.MonkeyPatch):
    with Path("/dev/full").open("w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        print_error("text")
        discard_unwritten_errors()
        stream.flush()
