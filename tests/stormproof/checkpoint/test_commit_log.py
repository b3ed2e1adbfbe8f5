import hashlib
import json
import os
from pathlib import Path

import pytest

from stormproof.checkpoint import commit_log
from stormproof.checkpoint.commit_log import append, lines_for, parse_log, read_log
from stormproof.checkpoint.manifest import LogMark

EVENTS = [{"event": kind, "name": f"00000{n}-step-{n}"} for n, kind in enumerate(["committed", "deleted", "lost"], 1)]


def _log(*events: dict[str, object]) -> bytes:
    content = b""
    for event in events:
        content += lines_for(parse_log(content), [event])
    return content


def _line(**fields: object) -> bytes:
    """A line whose checksum is right, whatever it says."""
    body = json.dumps(fields).encode().removesuffix(b"}")
    return body + b', "sum": "' + hashlib.sha256(body).hexdigest()[:16].encode() + b'"}\n'


def _told(content: bytes) -> list[tuple[str, str]]:
    return [(event["event"], event["name"]) for event in parse_log(content).events]


WHOLE = _log(*EVENTS)
TOLD = [(event["event"], event["name"]) for event in EVENTS]


def test_what_was_appended_is_read(tmp_path: Path):
    assert read_log(tmp_path / "log").events == []
    append(tmp_path / "log", EVENTS[:1])
    append(tmp_path / "log", EVENTS[1:])
    log = read_log(tmp_path / "log")
    assert _told(log.content) == TOLD
    assert (log.damage, log.torn) == ([], 0)
    assert log.names("committed", "lost") == {"000001-step-1", "000003-step-3"}


def test_a_cut_anywhere_loses_only_what_is_behind_it_and_is_no_damage():
    ends = [end for end in range(len(WHOLE) + 1) if WHOLE[:end].endswith(b"\n") or end == 0]
    for length in range(len(WHOLE)):
        log = parse_log(WHOLE[:length])
        whole = sum(end <= length + 1 for end in ends) - 1  # a line that lacks only its line end is whole
        assert _told(log.content) == TOLD[:whole]
        assert log.damage == []
        assert (log.torn > 0) is (length not in ends)


def test_the_log_goes_on_after_a_cut_anywhere_and_a_second_one():
    for length in range(len(WHOLE)):
        cut = WHOLE[:length]
        once = cut + lines_for(parse_log(cut), EVENTS[2:])
        log = parse_log(once)
        assert _told(once)[-1] == TOLD[2]
        assert (log.damage, log.torn) == ([], 0)
        twice = once[:-30]
        twice += lines_for(parse_log(twice), EVENTS[2:])
        assert _told(twice)[-1] == TOLD[2]
        assert parse_log(twice).damage == []


@pytest.mark.parametrize("tail", [b"\0" * 4096, b"\xff\xfe", b'{"n": 4, "event"'], ids=["zeroes", "junk", "torn"])
def test_the_log_goes_on_after_what_a_crash_left_at_its_end(tail: bytes):
    log = parse_log(WHOLE + tail)
    assert (log.damage, log.torn) == ([], len(tail))
    longer = WHOLE + tail + lines_for(log, EVENTS[:1])
    assert _told(longer) == [*TOLD, TOLD[0]]
    assert parse_log(longer).damage == []


def test_every_byte_that_is_flipped_is_found_and_costs_at_most_its_lines():
    mark = LogMark.of(WHOLE)
    for offset in range(len(WHOLE)):
        flipped = bytearray(WHOLE)
        flipped[offset] ^= 1
        log = parse_log(bytes(flipped))
        assert set(_told(log.content)) <= set(TOLD)
        assert len(log.events) >= len(EVENTS) - 2  # a flipped line end joins two lines
        assert log.damage_since(mark)
        assert log.damage or log.torn, offset


def test_a_line_that_is_gone_is_found():
    lines = WHOLE.splitlines(keepends=True)
    assert parse_log(lines[0] + lines[2]).damage[0].problem.startswith("lines are missing")
    assert parse_log(lines[1] + lines[2]).damage[0].problem.startswith("lines are missing")


def test_what_the_newest_manifest_saw_is_judged_by_its_mark():
    flipped = bytearray(WHOLE)
    flipped[5] ^= 1
    log = parse_log(bytes(flipped))
    assert log.damage_since(LogMark.of(bytes(flipped))) == []  # it was so at that commit already, and was told then
    assert "not those of the newest commit" in log.damage_since(LogMark.of(WHOLE))[0]
    assert "has 0 bytes and had" in parse_log(b"").damage_since(LogMark.of(WHOLE))[0]
    assert log.damage_since(None) == [damage.problem for damage in log.damage]


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
    append(path, EVENTS[:1])
    append(path, EVENTS[1:2])
    file, folder = path.stat().st_ino, tmp_path.stat().st_ino
    one, two = _log(EVENTS[0]), _log(*EVENTS[:2])
    assert synced == [(file, one), (folder, one), (file, two)]
    assert commit_log.read_log(path).content == two
