import hashlib
import json
import os
from pathlib import Path

import pytest

from stormproof.checkpoint import commit_log
from stormproof.checkpoint.commit_log import FileLog, append, format_lines, parse_log, read_log
from stormproof.checkpoint.manifest import LogPrefix

EVENTS = [{"event": kind, "name": f"00000{n}-step-{n}"} for n, kind in enumerate(["committed", "deleted", "lost"], 1)]


def _log(*events: dict[str, object]) -> bytes:
    content = b""
    for event in events:
        content += format_lines(parse_log(content), [event])
    return content


def _line(**fields: object) -> bytes:
    """A line whose checksum is right, whatever it says."""
    body = json.dumps(fields).encode().removesuffix(b"}")
    return body + b', "sum": "' + hashlib.sha256(body).hexdigest()[:16].encode() + b'"}\n'


def _error_of(content: bytes) -> list[tuple[str, str]]:
    return [(event["event"], event["name"]) for event in parse_log(content).events]


COMPLETE_LOG = _log(*EVENTS)
ERRORS = [(event["event"], event["name"]) for event in EVENTS]


def test_what_was_appended_is_read(tmp_path: Path):
    assert read_log(FileLog(tmp_path / "log")).events == []
    append(FileLog(tmp_path / "log"), EVENTS[:1])
    append(FileLog(tmp_path / "log"), EVENTS[1:])
    log = read_log(FileLog(tmp_path / "log"))
    assert _error_of(log.content) == ERRORS
    assert (log.damaged_places, log.torn_bytes) == ([], 0)
    assert log.checkpoint_names("committed", "lost") == {"000001-step-1", "000003-step-3"}


def test_a_cut_anywhere_loses_only_what_is_behind_it_and_is_no_damage():
    ends = [end for end in range(len(COMPLETE_LOG) + 1) if COMPLETE_LOG[:end].endswith(b"\n") or end == 0]
    for length in range(len(COMPLETE_LOG)):
        log = parse_log(COMPLETE_LOG[:length])
        whole = sum(end <= length + 1 for end in ends) - 1  # a line that lacks only its line end is whole
        assert _error_of(log.content) == ERRORS[:whole]
        assert log.damaged_places == []
        assert (log.torn_bytes > 0) is (length not in ends)


def test_the_log_goes_on_after_a_cut_anywhere_and_a_second_one():
    for length in range(len(COMPLETE_LOG)):
        cut = COMPLETE_LOG[:length]
        once = cut + format_lines(parse_log(cut), EVENTS[2:])
        log = parse_log(once)
        assert _error_of(once)[-1] == ERRORS[2]
        assert (log.damaged_places, log.torn_bytes) == ([], 0)
        twice = once[:-30]
        twice += format_lines(parse_log(twice), EVENTS[2:])
        assert _error_of(twice)[-1] == ERRORS[2]
        assert parse_log(twice).damaged_places == []


@pytest.mark.parametrize("tail", [b"\0" * 4096, b"\xff\xfe", b'{"n": 4, "event"'], ids=["zeroes", "junk", "torn"])
def test_the_log_goes_on_after_what_a_crash_left_at_its_end(tail: bytes):
    log = parse_log(COMPLETE_LOG + tail)
    assert (log.damaged_places, log.torn_bytes) == ([], len(tail))
    longer = COMPLETE_LOG + tail + format_lines(log, EVENTS[:1])
    assert _error_of(longer) == [*ERRORS, ERRORS[0]]
    assert parse_log(longer).damaged_places == []


def test_every_byte_that_is_flipped_is_found_and_costs_at_most_its_lines():
    mark = LogPrefix.from_content(COMPLETE_LOG)
    for offset in range(len(COMPLETE_LOG)):
        flipped = bytearray(COMPLETE_LOG)
        flipped[offset] ^= 1
        log = parse_log(bytes(flipped))
        assert set(_error_of(log.content)) <= set(ERRORS)
        assert len(log.events) >= len(EVENTS) - 2  # a flipped line end joins two lines
        assert log.find_problems_since(mark)
        assert log.damaged_places or log.torn_bytes, offset


def test_a_line_that_is_gone_is_found():
    lines = COMPLETE_LOG.splitlines(keepends=True)
    assert parse_log(lines[0] + lines[2]).damaged_places[0].problem.startswith("lines are missing")
    assert parse_log(lines[1] + lines[2]).damaged_places[0].problem.startswith("lines are missing")


def test_what_the_newest_manifest_saw_is_judged_by_its_mark():
    flipped = bytearray(COMPLETE_LOG)
    flipped[5] ^= 1
    log = parse_log(bytes(flipped))
    assert (
        log.find_problems_since(LogPrefix.from_content(bytes(flipped))) == []
    )  # it was so at that commit already, and was told then
    assert "have changed since the newest commit" in log.find_problems_since(LogPrefix.from_content(COMPLETE_LOG))[0]
    assert "has 0 bytes but had" in parse_log(b"").find_problems_since(LogPrefix.from_content(COMPLETE_LOG))[0]
    assert log.find_problems_since(None) == [damage.problem for damage in log.damaged_places]


ATTEMPT = {"n": 1, "event": "attempt", "number": 1, "step": 0, "time": 1.0, "removed": []}


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1, "event": "committed", "name": "../000001-step-1"},
        {"n": 1, "event": "committed", "name": "/tmp/000001-step-1"},
        {"n": 1, "event": "committed", "name": "9" * 5000 + "-step-1"},
        {"n": 1, "event": "committed", "name": None},
        {"n": 1, "event": "committed"},
        {"n": True, "event": "committed", "name": "000001-step-1"},
        {"n": 1, "event": 1, "name": "000001-step-1"},
        {**ATTEMPT, "number": "1"},
        {**ATTEMPT, "time": None},
        {**ATTEMPT, "removed": None},
        {**ATTEMPT, "removed": [1]},
        {**ATTEMPT, "removed": ["9" * 5000]},
    ],
)
def test_a_forged_line_with_the_right_checksum_says_nothing(fields: dict[str, object]):
    assert parse_log(_line(**ATTEMPT)).events
    assert parse_log(_line(**fields)).events == []


def test_a_line_is_on_the_disk_when_append_returns_and_the_new_file_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "log"
    synced = []

    def recorded(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_ino, path.read_bytes()))

    monkeypatch.setattr(os, "fsync", recorded)
    append(FileLog(path), EVENTS[:1])
    append(FileLog(path), EVENTS[1:2])
    file, folder = path.stat().st_ino, tmp_path.stat().st_ino
    first_log, second_log = _log(EVENTS[0]), _log(*EVENTS[:2])
    assert synced == [(file, first_log), (folder, first_log), (file, second_log)]
    assert commit_log.read_log(FileLog(path)).content == second_log
