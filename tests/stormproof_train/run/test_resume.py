"""Selection of the checkpoint that a run resumes from."""

from pathlib import Path
from typing import Any

import pytest

from stormproof import CheckpointRecovery
from stormproof_train.config.identity import RunSpec
from stormproof_train.errors import UserError
from stormproof_train.run import resume
from stormproof_train.run.folder import RunFolder
from tests.support.some_checkpoints import filled


def begun(runs: Path) -> RunFolder:
    folder = RunFolder(runs, "mine")
    folder.begin(RunSpec({"seed": 0}, "", "mine"), "auto")
    folder.training_begins(step=0, ranks=2, accumulated=1)
    return folder


def test_a_run_resumes_from_its_newest_checkpoint(tmp_path: Path):
    folder = begun(tmp_path)
    filled(folder.checkpoints)
    recovery = CheckpointRecovery(folder.checkpoints)
    checkpoint = resume.checkpoint_to_go_on_from(recovery, folder, "auto", restarts=3)
    assert checkpoint is not None
    assert checkpoint.step == 30


def test_a_trained_run_without_checkpoints_is_refused(tmp_path: Path):
    folder = begun(tmp_path)
    with pytest.raises(UserError, match="has trained before, and its checkpoints are gone"):
        resume.checkpoint_to_go_on_from(CheckpointRecovery(folder.checkpoints), folder, "auto", restarts=3)


@pytest.mark.parametrize(("rank_zero", "counted"), [(True, [1, 2]), (False, [1])])
def test_other_ranks_do_not_count_the_attempt_that_rank_zero_may_have_started(
    rank_zero: bool, counted: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    begun(tmp_path).fail("killed", 1, last_step=9)
    folder = begun(tmp_path)
    filled(folder.checkpoints)
    calls: list[Any] = []
    monkeypatch.setattr(resume, "is_rank_zero", lambda: rank_zero)
    monkeypatch.setattr(resume, "refuse_crash_loop", lambda *arguments: calls.append(arguments))
    resume.checkpoint_to_go_on_from(CheckpointRecovery(folder.checkpoints), folder, "auto", restarts=3)
    ((attempts, step, limit, _),) = calls
    assert ([attempt["number"] for attempt in attempts], step, limit) == (counted, 30, 3)
