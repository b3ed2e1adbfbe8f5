import logging
from collections.abc import Iterator

import pytest

from stormproof import Finding, Problem, Severity
from stormproof.event_log import log_event
from stormproof.health.publishing import log_finding


class Recorder(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture(params=["", "stormproof"])
def recorder(request: pytest.FixtureRequest) -> Iterator[Recorder]:
    handler, logger = Recorder(), logging.getLogger(request.param)
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def test_events_are_printed_by_default(capsys: pytest.CaptureFixture[str]):
    log_event("stormproof.checkpoint", "100% saved")
    assert capsys.readouterr().out == "100% saved\n"


def test_a_null_handler_does_not_replace_the_console(capsys: pytest.CaptureFixture[str]):
    handler = logging.NullHandler()
    logging.getLogger().addHandler(handler)
    try:
        log_event("stormproof.checkpoint", "saved")
    finally:
        logging.getLogger().removeHandler(handler)
    assert capsys.readouterr().out == "saved\n"


def test_other_ranks_log_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("RANK", "1")
    log_event("stormproof.checkpoint", "saved")
    assert capsys.readouterr().out == ""


def test_a_handler_of_the_program_replaces_the_console(recorder: Recorder, capsys: pytest.CaptureFixture[str]):
    log_event("stormproof.checkpoint", "saved")
    assert capsys.readouterr().out == ""
    assert [(record.name, record.getMessage(), record.filename) for record in recorder.records] == [
        ("stormproof.checkpoint", "saved", "test_event_log.py")
    ]


@pytest.mark.parametrize(
    ("severity", "level"), [("info", logging.INFO), ("warning", logging.WARNING), ("critical", logging.ERROR)]
)
def test_a_record_has_the_finding(recorder: Recorder, severity: str, level: int):
    finding = Finding(Problem.DEAD_UNITS, Severity(severity), "net.1", 0, 20)
    log_finding(finding)
    assert [(record.levelno, vars(record)["finding"]) for record in recorder.records] == [(level, finding)]


def test_events_are_silenced_by_the_level(capsys: pytest.CaptureFixture[str]):
    logger = logging.getLogger("stormproof")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        log_event("stormproof.checkpoint", "saved")
        log_event("stormproof.checkpoint", "lost", logging.ERROR)
    finally:
        logger.setLevel(level)
    assert capsys.readouterr().out == "lost\n"
