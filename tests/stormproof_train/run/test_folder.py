import errno
import json
import os
import socket
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from stormproof.checkpoint import Lease
from stormproof.checkpoint.progress_file import ProgressFile
from stormproof.errors import FolderLostError, FolderTakenError
from stormproof_train.config.identity import RunSpec, compute_identity
from stormproof_train.errors import ExitCode, UserError
from stormproof_train.run.folder import RunFolder

SETTINGS = {"seed": 0, "model": {"_target_": "m.MLP", "width": 8}, "logger": {"mode": "auto"}}
OTHER = {**SETTINGS, "seed": 3, "model": {"_target_": "m.MLP", "width": 9}}
SUMMARY = {
    "name": "mine",
    "steps": 12,
    "attempts": 1,
    "test": {"accuracy": 0.5},
    "validation": {"accuracy": 0.6},
    "headline": "accuracy",
    "higher_is_better": True,
    "parameters": 3,
    "seconds": 1.5,
}


def _spec(settings: dict[str, Any]) -> RunSpec:
    return RunSpec(settings, compute_identity(settings), "mine")


SPEC = _spec(SETTINGS)


def _record(folder: RunFolder) -> dict[str, Any]:
    record = folder.read_record()
    assert record is not None
    return record


def _begin_run(runs: Path, training: bool = True) -> RunFolder:
    folder = RunFolder(runs, "mine")
    folder.begin_attempt(SPEC, "auto")
    if training:
        folder.record_training_start(step=0, world_size=2, accumulate_grad_batches=1)
    return folder


def _finish_run(runs: Path) -> RunFolder:
    folder = _begin_run(runs)
    folder.record_finish(SUMMARY, last_step=12, changed=[])
    return folder


def _kill_run(runs: Path, training: bool = True) -> None:
    """Leaves what a killed process leaves: everything, but nobody who holds the lease."""
    folder = _begin_run(runs, training)
    assert folder._lease is not None
    folder._lease.release()


def test_a_run_writes_down_what_it_is_and_how_it_went(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    folder = _begin_run(tmp_path / "runs")
    assert folder.path == tmp_path / "runs" / "mine"
    assert folder.checkpoints.is_dir()
    assert yaml.safe_load((folder.path / "config.yaml").read_text()) == SETTINGS
    assert Lease.is_active(folder.path)
    assert folder.attempt == 1
    assert folder.read_summary() is None
    record = _record(folder)
    (attempt,) = record["attempts"]
    assert {key: record[key] for key in ("name", "identity", "status")} == {
        "name": "mine",
        "identity": compute_identity(SETTINGS),
        "status": "running",
    }
    start = datetime.fromisoformat(attempt.pop("start"))
    assert start.utcoffset() is not None
    assert attempt == {
        "number": 1,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "ranks": 2,
        "accumulated": 1,
        "jobs": {"SLURM_JOB_ID": "77"},
        "end": None,
        "first_step": 0,
        "last_step": None,
        "reason": None,
        "code": None,
    }
    folder.record_finish(SUMMARY, last_step=12, changed=[])
    (attempt,) = _record(folder)["attempts"]
    assert _record(folder)["status"] == "finished"
    assert datetime.fromisoformat(attempt["end"]) >= start
    assert (attempt["last_step"], attempt["reason"]) == (12, None)
    assert not (folder.path / "lease.json").exists()
    assert RunFolder(tmp_path / "runs", "mine").read_summary() == SUMMARY
    assert not list(folder.path.glob("*.tmp"))


def test_a_finished_run_may_be_asked_for_again_and_must_be(tmp_path: Path):
    _finish_run(tmp_path)
    second_folder = RunFolder(tmp_path, "mine")
    second_folder.check_startable(SPEC, "auto")
    second_folder.check_startable(SPEC, "must")
    second_folder.check_startable(_spec({**SETTINGS, "logger": {"mode": "offline"}}), "auto")
    with pytest.raises(UserError, match="resume=never, but"):
        second_folder.check_startable(SPEC, "never")


def test_a_finished_run_is_not_begun_again(tmp_path: Path):
    before = _record(_finish_run(tmp_path))
    second_folder = RunFolder(tmp_path, "mine")
    with pytest.raises(UserError, match="has just finished the run"):
        second_folder.begin_attempt(SPEC, "auto")
    assert _record(second_folder) == before
    assert not Lease.is_active(second_folder.path)


def test_another_run_is_refused_with_every_difference(tmp_path: Path):
    _finish_run(tmp_path)
    with pytest.raises(UserError, match=r"has other settings: model\.width: 8 -> 9; seed: 0 -> 3\. Choose"):
        RunFolder(tmp_path, "mine").check_startable(_spec(OTHER), "auto")


def test_of_many_differences_five_are_shown(tmp_path: Path):
    _finish_run(tmp_path)
    with pytest.raises(UserError, match=r"a4: \(not set\) -> 4; and 5 more\. Choose"):
        RunFolder(tmp_path, "mine").check_startable(
            _spec({**SETTINGS, **{f"a{number}": number for number in range(10)}}), "auto"
        )


def test_a_failed_run_says_why_and_goes_on_as_the_same_run(tmp_path: Path):
    folder = _begin_run(tmp_path)
    run_id = folder.run_id
    folder.record_end("failed", "stopped by SIGTERM at step 7", ExitCode.FAILED, last_step=7)
    assert _record(folder)["status"] == "failed"
    assert not Lease.is_active(folder.path)
    second_folder = RunFolder(tmp_path, "mine")
    assert second_folder.has_trained
    second_folder.begin_attempt(SPEC, "must")
    assert (second_folder.attempt, second_folder.run_id) == (2, run_id)
    first = _record(second_folder)["attempts"][0]
    assert (first["last_step"], first["reason"]) == (7, "stopped by SIGTERM at step 7")
    second_folder.record_end("failed", "enough", ExitCode.FAILED, last_step=None)


def test_two_runs_have_two_ids(tmp_path: Path):
    first, second = RunFolder(tmp_path, "one"), RunFolder(tmp_path, "two")
    for folder in (first, second):
        folder.begin_attempt(SPEC, "auto")
        folder.record_end("failed", "enough", ExitCode.FAILED, last_step=None)
    assert len(first.run_id) == len(second.run_id) == 8
    assert first.run_id != second.run_id


@pytest.mark.parametrize(("reached", "last_step"), [(9, 9), (None, None)])
def test_of_a_killed_attempt_the_next_writes_down_how_far_it_came(
    reached: int | None, last_step: int | None, tmp_path: Path
):
    _kill_run(tmp_path)
    if reached is not None:
        file = ProgressFile(tmp_path / "mine/checkpoints/reached")
        file.write(reached)
        file.close()
    second_folder = RunFolder(tmp_path, "mine")
    assert second_folder.has_trained
    second_folder.begin_attempt(SPEC, "auto")
    first = _record(second_folder)["attempts"][0]
    assert (first["last_step"], first["reason"]) == (last_step, "it was killed")
    assert datetime.fromisoformat(first["end"]) >= datetime.fromisoformat(first["start"])
    assert 0 <= second_folder.previous_seconds < 60
    second_folder.record_end("failed", "enough", ExitCode.FAILED, last_step=None)


def test_an_attempt_whose_rank_zero_was_stopped_has_the_reason_that_another_rank_wrote(tmp_path: Path):
    _kill_run(tmp_path)
    folder = RunFolder(tmp_path, "mine")
    (folder.path / "hang-rank2.txt").write_text("hang: rank 2 of 3 stood still\nand its stacks\n")
    folder.begin_attempt(SPEC, "auto")
    first = _record(folder)["attempts"][0]
    assert (first["reason"], first["code"]) == ("hang: rank 2 of 3 stood still", 78)
    folder.record_end("failed", "enough", ExitCode.FAILED, last_step=None)
    _kill_run(tmp_path)
    os.utime(folder.path / "hang-rank2.txt", (0, 0))  # of an attempt long before
    second_folder = RunFolder(tmp_path, "mine")
    second_folder.begin_attempt(SPEC, "auto")
    assert _record(folder)["attempts"][2]["reason"] == "it was killed"
    second_folder.record_end("failed", "enough", ExitCode.FAILED, last_step=None)


def test_an_attempt_that_hangs_says_so(tmp_path: Path):
    folder = _begin_run(tmp_path)
    folder.record_hang("hang: rank 0 stood still", last_step=9)
    record = _record(folder)
    attempt = record["attempts"][0]
    assert (record["status"], attempt["reason"], attempt["code"], attempt["last_step"]) == (
        "failed", "hang: rank 0 stood still", 78, 9,
    )  # fmt: skip


@pytest.mark.parametrize("how", ["before training", "before the first step", "killed before training"])
def test_an_attempt_that_trained_nothing_does_not_block_the_next(how: str, tmp_path: Path):
    if how == "killed before training":
        _kill_run(tmp_path, training=False)
    else:
        folder = _begin_run(tmp_path, training=how == "before the first step")
        folder.record_end("failed", "UserError: a mistake", ExitCode.FAILED, last_step=0)
    second = RunFolder(tmp_path, "mine")
    assert not second.has_trained
    second.begin_attempt(SPEC, "auto")
    assert second.attempt == 2
    assert [attempt["number"] for attempt in _record(second)["attempts"]] == [1, 2]
    assert _record(second)["status"] == "running"
    second.record_training_start(step=0, world_size=1, accumulate_grad_batches=1)
    second.record_finish(SUMMARY, last_step=12, changed=[])
    assert second.read_summary() == SUMMARY


def test_an_untrained_run_can_be_replaced_unless_its_process_is_running(tmp_path: Path):
    running = _begin_run(tmp_path / "running", training=False)
    _kill_run(tmp_path / "killed", training=False)
    try:
        with pytest.raises(UserError, match="has other settings: "):
            RunFolder(tmp_path / "running", "mine").check_startable(_spec(OTHER), "auto")
        RunFolder(tmp_path / "killed", "mine").check_startable(_spec(OTHER), "auto")
    finally:
        running.record_end("failed", "stopped", ExitCode.FAILED, last_step=0)


def test_a_living_run_is_refused_with_its_process(tmp_path: Path):
    folder = _begin_run(tmp_path)
    before = _record(folder)
    try:
        with pytest.raises(FolderTakenError, match=f"is in use by process {os.getpid()} on "):
            RunFolder(tmp_path, "mine").begin_attempt(SPEC, "auto")
        assert _record(folder) == before
    finally:
        folder.record_finish(SUMMARY, last_step=12, changed=[])


def test_an_attempt_whose_folder_was_taken_over_writes_no_more(tmp_path: Path):
    folder = _begin_run(tmp_path)
    lease = folder.path / "lease.json"
    lease.write_text(json.dumps({**json.loads(lease.read_text()), "token": "another", "pid": 17}))
    before = _record(folder)
    with pytest.raises(FolderLostError, match=r"because process 17 on .* took it over"):
        folder.record_finish(SUMMARY, last_step=12, changed=[])
    with pytest.raises(FolderLostError, match=r"because process 17 on .* took it over"):
        folder.record_end("failed", "reason", ExitCode.FAILED, last_step=12)
    assert _record(folder) == before
    assert not (folder.path / "summary.json").exists()
    assert json.loads(lease.read_text())["pid"] == 17


NAMES = ["", ".", "..", "sweeps", "a/b", "/etc", "a\\b", "a\0b", "x" * 201, "ü" * 150]


@pytest.mark.parametrize("name", NAMES, ids=[ascii(name[:8]) for name in NAMES])
def test_a_name_that_cannot_be_a_folder_is_refused(name: str, tmp_path: Path):
    with pytest.raises(UserError, match="is not a valid folder name"):
        RunFolder(tmp_path, name)


@pytest.mark.parametrize("name", ["a", "digits-mlp-elu-0f00ba4a", "lr=0.1 seed=2", "ü", "x" * 200])
def test_any_other_name_will_do(name: str, tmp_path: Path):
    folder = RunFolder(tmp_path, name)
    assert folder.read_record() is None
    folder.begin_attempt(SPEC, "auto")
    folder.record_end("failed", "enough", ExitCode.FAILED, last_step=None)
    assert (tmp_path / name / "run.json").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="exists and is not a run folder"):
        RunFolder(tmp_path, "mine").begin_attempt(SPEC, "auto")
    assert [entry.name for entry in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("left", [[], ["config.yaml"], ["checkpoints", ".lease.lock", ".run.json.0123.tmp"]])
def test_what_a_kill_leaves_before_the_record_does_not_block(left: list[str], tmp_path: Path):
    (tmp_path / "mine").mkdir()
    for name in left:
        if name == "checkpoints":
            (tmp_path / "mine" / name).mkdir()
        else:
            (tmp_path / "mine" / name).touch()
    folder = RunFolder(tmp_path, "mine")
    folder.begin_attempt(SPEC, "auto")
    assert yaml.safe_load((folder.path / "config.yaml").read_text()) == SETTINGS
    folder.record_end("failed", "enough", ExitCode.FAILED, last_step=None)


def test_another_run_without_its_config_is_refused(tmp_path: Path):
    (_finish_run(tmp_path).path / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"config\.yaml, which contains the settings of the run, is missing"):
        RunFolder(tmp_path, "mine").check_startable(_spec(OTHER), "auto")


@pytest.mark.parametrize("place", ["the runs", "the run"])
def test_a_file_in_the_place_of_a_folder_is_a_sentence(place: str, tmp_path: Path):
    runs = tmp_path / "runs"
    if place == "the run":
        runs.mkdir()
    (runs if place == "the runs" else runs / "mine").write_text("a file")
    with pytest.raises(UserError, match="folder"):
        RunFolder(runs, "mine").begin_attempt(SPEC, "auto")


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=r"runs_dir=.*: the run folder cannot be created: Permission denied"):
        RunFolder(tmp_path, "mine").begin_attempt(SPEC, "auto")


def test_a_full_disk_at_the_beginning_gives_the_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = RunFolder(tmp_path, "mine")
    try:
        with monkeypatch.context() as patched:
            patched.setattr("stormproof_train.run.folder._write_file", full)
            with pytest.raises(OSError, match="No space left"):
                folder.begin_attempt(SPEC, "auto")
        assert not Lease.is_active(folder.path)  # in a sweep this process lives on
    finally:
        if folder._lease is not None:
            folder._lease.release()
