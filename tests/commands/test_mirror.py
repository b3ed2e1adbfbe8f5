"""Runs that copy their checkpoints to an object store and lose their folder."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from stormproof.checkpoint import Store
from stormproof.checkpoint.storage import ObjectStorage
from tests.support.forked_command import Command
from tests.support.object_stores import S3Server

pytestmark = pytest.mark.slow

FAULTS = """
import os, signal
from pytorch_lightning import Callback

class Kill(Callback):
    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == int(os.environ.get("KILL_STEP", "0")):
            for callback in trainer.callbacks:
                if hasattr(callback, "finish_mirror"):
                    callback.finish_mirror(60)
            os.kill(os.getpid(), signal.SIGKILL)
"""
OVERRIDES = (
    "callbacks.kill._target_=mine.Kill", "callbacks.recovery.every_n_train_steps=7", "trainer.max_epochs=2",
    "callbacks.recovery.async_save=false", "name=run",
)  # fmt: skip


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    newest = Store(folder / "runs" / "run" / "checkpoints").latest_checkpoint()
    assert newest is not None
    return torch.load(newest.path, weights_only=True)["state_dict"]


def test_a_run_without_its_folder_resumes_from_the_mirror(
    command: Command, tmp_path: Path, s3_server: S3Server, s3_url: str
):
    (tmp_path / "mine.py").write_text(FAULTS)
    environment = {**os.environ, **s3_server.environment()}
    assert command(*OVERRIDES).returncode == 0
    expected = _weights(tmp_path)
    shutil.rmtree(tmp_path / "runs")
    mirrored = [*OVERRIDES, f"checkpoints.mirror={s3_url}/"]
    killed = command(*mirrored, env={**environment, "KILL_STEP": "20"})
    assert killed.returncode != 0
    steps = [checkpoint.step for checkpoint in Store(ObjectStorage(f"{s3_url}/run")).read_checkpoints()]
    assert steps[-1] == 14
    shutil.rmtree(tmp_path / "runs")
    resumed = command(*mirrored, env=environment)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "resuming from step 14 " in resumed.stdout
    weights = _weights(tmp_path)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    record = json.loads((tmp_path / "runs" / "run" / "run.json").read_text())
    assert len(record["attempts"]) == 1


@pytest.mark.parametrize("mirror", ["runs/copies", "3"])
def test_a_mirror_that_is_not_a_url_is_rejected(mirror: str, command: Command):
    result = command(f"checkpoints.mirror={mirror}")
    assert result.returncode == 2
    assert f"checkpoints.mirror must be a URL such as s3://bucket/runs, or null, got {mirror}" in result.stderr
