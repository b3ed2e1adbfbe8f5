"""Selection of the checkpoint that a run resumes from."""

from pathlib import Path
from typing import Any

import pytest

from stormproof import CheckpointRecovery
from stormproof_train.config.identity import RunSpec
from stormproof_train.errors import StorageError, UserError
from stormproof_train.run import resume
from stormproof_train.run.folder import RunFolder
from tests.support.checkpoint_files import make_store


def begin_run(runs: Path) -> RunFolder:
    folder = RunFolder(runs, "mine")
    folder.begin_attempt(RunSpec({"seed": 0}, "", "mine"), "auto")
    folder.record_training_start(step=0, world_size=2, accumulate_grad_batches=1)
    return folder


def test_a_run_resumes_from_its_newest_checkpoint(tmp_path: Path):
    folder = begin_run(tmp_path)
    make_store(folder.checkpoints)
    recovery = CheckpointRecovery(folder.checkpoints)
    checkpoint = resume.find_resume_checkpoint(recovery, folder, "auto", max_restarts_without_progress=3)
    assert checkpoint is not None
    assert checkpoint.step == 30


def test_a_trained_run_without_checkpoints_is_refused(tmp_path: Path):
    folder = begin_run(tmp_path)
    with pytest.raises(UserError, match="has trained before, but its checkpoints are missing"):
        resume.find_resume_checkpoint(
            CheckpointRecovery(folder.checkpoints), folder, "auto", max_restarts_without_progress=3
        )


def test_must_requires_a_checkpoint(tmp_path: Path):
    folder = RunFolder(tmp_path, "mine")
    with pytest.raises(UserError, match=r"resume=must, but the run .*/mine has no checkpoint\. Set resume=auto"):
        resume.find_resume_checkpoint(CheckpointRecovery(folder.checkpoints), folder, "must", None)
    assert not list(tmp_path.iterdir())


def test_never_rejects_checkpoints_that_an_unrecorded_attempt_downloaded(tmp_path: Path):
    folder = RunFolder(tmp_path, "mine")
    make_store(folder.checkpoints)
    with pytest.raises(UserError, match=r"resume=never, but .*/mine/checkpoints has a checkpoint of step 30\. Choose"):
        resume.find_resume_checkpoint(CheckpointRecovery(folder.checkpoints), folder, "never", None)


def test_never_allows_the_checkpoint_of_an_attempt_without_a_step(tmp_path: Path):
    folder = RunFolder(tmp_path, "mine")
    make_store(folder.checkpoints, [0])
    checkpoint = resume.find_resume_checkpoint(CheckpointRecovery(folder.checkpoints), folder, "never", None)
    assert checkpoint is not None


def test_never_requires_a_mirror_that_can_be_read(s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(resume, "MIRROR_READ_SECONDS", 0.1)
    monkeypatch.setattr("stormproof.checkpoint.read_retry.READ_RETRY_DELAYS", ())
    folder = RunFolder(tmp_path, "mine")
    recovery = CheckpointRecovery(folder.checkpoints, mirror=s3_url)
    with pytest.raises(StorageError, match=f"The mirror {s3_url} cannot be read: the object store cannot be reached"):
        resume.find_resume_checkpoint(recovery, folder, "never", None)


@pytest.mark.parametrize(("rank_zero", "counted"), [(True, [1, 2]), (False, [1])])
def test_other_ranks_do_not_count_the_attempt_that_rank_zero_may_have_started(
    rank_zero: bool, counted: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    begin_run(tmp_path).record_end("failed", "killed", 1, last_step=9)
    folder = begin_run(tmp_path)
    make_store(folder.checkpoints)
    calls: list[Any] = []
    monkeypatch.setattr(resume, "is_rank_zero", lambda: rank_zero)
    monkeypatch.setattr(resume, "check_restart_budget", lambda *arguments: calls.append(arguments))
    resume.find_resume_checkpoint(
        CheckpointRecovery(folder.checkpoints), folder, "auto", max_restarts_without_progress=3
    )
    ((attempts, step, limit, _),) = calls
    assert ([attempt["number"] for attempt in attempts], step, limit) == (counted, 30, 3)
