import os
import subprocess
import sys
from pathlib import Path

import pytest

from stormproof import CheckpointRecovery
from stormproof_train.loggers.wandb_history import sort_best_first
from tests.support.checkpoint_files import commit_checkpoint, make_store
from tests.support.forked_command import ROOT
from tests.support.wandb_server import WandbServer

SCORES = {10: 0.5, 20: 0.9, 30: 0.7}


def recovered(folder: Path, **arguments: object) -> CheckpointRecovery:
    store = make_store(folder, [])
    for step, score in SCORES.items():
        commit_checkpoint(store, step, score=score)
    commit_checkpoint(store, 40, finite=False)
    return CheckpointRecovery(folder, **arguments)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [({}, [30, 20, 10]), ({"monitor": "a", "mode": "max"}, [20, 30, 10]), ({"monitor": "a"}, [10, 30, 20])],
)
def test_the_best_come_first_or_the_newest_where_no_metric_decides(
    arguments: dict[str, object], steps: list[int], tmp_path: Path
):
    assert [checkpoint.step for checkpoint in sort_best_first(recovered(tmp_path, **arguments))] == steps


def test_a_run_that_was_never_saved_has_none(tmp_path: Path):
    assert sort_best_first(CheckpointRecovery(tmp_path / "none")) == []


SCRIPT = """
import sys
import wandb
from stormproof.checkpoint import Store
from stormproof_train.loggers.wandb_history import upload_checkpoints

checkpoints = Store(sys.argv[1]).read_checkpoints()
with wandb.init(id="mine", project="p", settings=wandb.Settings(silent=True, console="off")) as run:
    for kept in ([], checkpoints[:2], checkpoints[1:3]):
        upload_checkpoints(run, kept)
"""


@pytest.mark.slow
def test_a_version_takes_the_place_of_the_one_before(tmp_path: Path):
    recovered(tmp_path / "checkpoints")
    with WandbServer() as server:
        environ = {**os.environ, **server.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT / "src")}
        overrides = [sys.executable, "-c", SCRIPT, str(tmp_path / "checkpoints")]
        subprocess.run(overrides, cwd=tmp_path, env=environ, stdin=subprocess.DEVNULL, check=True, timeout=60)
    assert server.unknown_operations == []
    older, newer = server.artifacts
    assert (older.deleted, newer.deleted) == (True, False)
    assert newer.collection == "checkpoints-mine"
    assert {Path(name).suffix for name in newer.files} == {".ckpt", ".json"}
    assert {int(Path(name).stem.rpartition("-")[2]) for name in newer.files} == {20, 30}
