"""Selection of the checkpoint that a run resumes from."""

from pathlib import Path
from typing import Any

import pytest

from stormproof import CheckpointRecovery
from stormproof_train.config.identity import RunSpec
from stormproof_train.errors import UserError
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


@pytest.mark.parametrize(("rank_zero", "counted"), [(True, [1, 2]), (False, [1])])
def test_other_ranks_do_not_count_the_attempt_that_rank_zero_may_have_started(
    rank_zero: bool, counted: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    begin_run(tmp_path).record_failure("killed", 1, last_step=9)
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
