import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from stormproof.checkpoint import Lease, Store
from stormproof.checkpoint.lease import Owner
from stormproof.cli.doctor import checkpoint_risks
from tests.support.checkpoint_files import flip_bit, make_store


def _kill_attempt(folder: Path) -> None:
    owner = replace(Owner.from_this_process(), pid=17, started=0.0, start_ticks=1)
    (folder / "lease.json").write_text(json.dumps(asdict(owner)))


def _lose_checkpoint(folder: Path) -> None:
    for suffix in ("ckpt", "json"):
        (folder / f"000002-step-20.{suffix}").unlink()


def _touch(*names: str) -> Callable[[Path], object]:
    return lambda folder: [(folder / name).touch() for name in names]


FINDINGS = {
    "damaged": (lambda f: flip_bit(f / "000001-step-10.ckpt"), "a checkpoint is damaged", "content has changed"),
    "lost": (_lose_checkpoint, "a checkpoint is lost", "its files are missing"),
    "log": (lambda f: flip_bit(f / "commits.log", 3), "the commit log is damaged",
            "have changed since the newest commit"),
    "foreign": (_touch("a.ckpt", "b.ckpt", "c.ckpt"), "a.ckpt, b.ckpt and 1 more: not", "not resume from it"),
    "last": (_touch("last.ckpt"), "last.ckpt: saved by Lightning's ModelCheckpoint", "newest file by date"),
    "last of many": (_touch("last.ckpt", "last-v1.ckpt"), "last-v1.ckpt, last.ckpt: saved by", "by date"),
    "left over": (
        _touch(".000009-step-9.ckpt.0123abcd.tmp"), ".000009-step-9.ckpt.0123abcd.tmp: 0 bytes left over", "use space"
    ),
    "left over of a lease": (_touch(".lease.json.0123abcd.tmp"), ".lease.json.0123abcd.tmp: 0 bytes", "use space"),
    "a stale lease": (_kill_attempt, "a stale lease of process 17 on ", "was killed"),
    "a strange lease": (_touch("lease.json"), "the lease is not readable", "waits until the file is 60 s old"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "what", "why"), FINDINGS.values(), ids=FINDINGS.keys())
def test_what_would_lose_work_is_told(make: Callable[[Path], object], what: str, why: str, tmp_path: Path):
    make_store(tmp_path)
    assert checkpoint_risks(Store(tmp_path)) == []
    make(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (risk,) = checkpoint_risks(Store(tmp_path))
    assert risk.summary.startswith(what)
    assert why in risk.reason
    assert risk.location.startswith(str(tmp_path))
    assert risk.advice
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_first_start_has_nothing_to_lose(tmp_path: Path):
    assert checkpoint_risks(Store(tmp_path)) == []


def test_one_good_checkpoint_alone_is_told(tmp_path: Path):
    store = make_store(tmp_path, [10])
    (risk,) = checkpoint_risks(Store(tmp_path))
    assert risk.summary == "there is only one good checkpoint"
    assert risk.location == str(store.read_checkpoints()[0].path)


def test_where_none_is_good_it_says_that_a_start_is_refused(tmp_path: Path):
    make_store(tmp_path, [10])
    os.truncate(tmp_path / "000001-step-10.ckpt", 10)
    (risk,) = checkpoint_risks(Store(tmp_path))
    assert "the next start is refused" in risk.advice


def test_a_run_that_lives_is_told_and_its_temporary_files_are_not(tmp_path: Path):
    make_store(tmp_path)
    lease = Lease(tmp_path)
    try:
        (tmp_path / ".000009-step-9.ckpt.0123abcd.tmp").touch()
        (risk,) = checkpoint_risks(Store(tmp_path))
        assert risk.summary.startswith(f"in use by running process {os.getpid()} on ")
    finally:
        lease.release()
