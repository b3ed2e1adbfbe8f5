"""Runs that copy their checkpoints to an object store and lose their folder."""

import json
import os
import shutil
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch

from stormproof.checkpoint import Store
from stormproof.checkpoint.storage import ObjectStorage
from tests.support.forked_command import Command
from tests.support.object_stores import S3Server, make_object_store

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


def _environment(s3_server: S3Server) -> dict[str, str]:
    return {**os.environ, **s3_server.environment()}


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    newest = Store(folder / "runs" / "run" / "checkpoints").latest_checkpoint()
    assert newest is not None
    return torch.load(newest.path, weights_only=True)["state_dict"]


@pytest.mark.parametrize("resume", ["auto", "must"])
def test_a_run_without_its_folder_resumes_from_the_mirror(
    resume: str, command: Command, tmp_path: Path, s3_server: S3Server, s3_url: str
):
    (tmp_path / "mine.py").write_text(FAULTS)
    environment = _environment(s3_server)
    assert command(*OVERRIDES).returncode == 0
    expected = _weights(tmp_path)
    shutil.rmtree(tmp_path / "runs")
    mirrored = [*OVERRIDES, f"checkpoints.mirror={s3_url}/"]
    killed = command(*mirrored, env={**environment, "KILL_STEP": "20"})
    assert killed.returncode != 0
    steps = [checkpoint.step for checkpoint in Store(ObjectStorage(f"{s3_url}/run")).read_checkpoints()]
    assert steps[-1] == 14
    shutil.rmtree(tmp_path / "runs")
    resumed = command(*mirrored, f"resume={resume}", env=environment)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "resuming from step 14 " in resumed.stdout
    weights = _weights(tmp_path)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    record = json.loads((tmp_path / "runs" / "run" / "run.json").read_text())
    assert [attempt["reason"] for attempt in record["attempts"]] == ["run.json was lost", None]


@pytest.mark.parametrize("resume", ["must", "never"])
def test_with_an_empty_mirror_never_starts_a_run_and_must_refuses(
    resume: str, command: Command, tmp_path: Path, s3_server: S3Server, s3_url: str
):
    mirror = f"checkpoints.mirror={s3_url}"
    result = command(f"resume={resume}", mirror, "name=run", "trainer.max_epochs=1", env=_environment(s3_server))
    if resume == "never":
        assert result.returncode == 0, result.stderr
        assert "resuming from" not in result.stdout
    else:
        fix = "Set resume=auto to start a new run."
        expected = f"resume=must, but neither the run runs/run nor its mirror {s3_url}/run has a checkpoint. {fix}"
        _assert_refused(result, expected, tmp_path)


def test_a_run_whose_mirror_has_a_checkpoint_is_not_started_with_never(
    command: Command, tmp_path: Path, s3_server: S3Server, s3_url: str
):
    make_object_store(ObjectStorage(f"{s3_url}/run"))
    result = command("resume=never", f"checkpoints.mirror={s3_url}", "name=run", env=_environment(s3_server))
    expected = f"resume=never, but {s3_url}/run has a checkpoint of step 30. Choose another name (name=…)."
    _assert_refused(result, expected, tmp_path)


NOT_A_URL = "checkpoints.mirror must be a URL such as s3://bucket/runs, or null, got "
NO_BUCKET = "checkpoints.mirror: s3:// has no valid bucket name. Write the URL as s3://bucket/prefix."
NO_ACCOUNT = "checkpoints.mirror=az://c/p cannot be opened: the credentials are missing or rejected; set them in the "
UNUSED = "checkpoints.mirror=s3://b/p has no effect, because no callback uses it. Set callbacks=default, or "
INVALID_MIRRORS = {
    "a folder": (["checkpoints.mirror=runs/copies"], f"{NOT_A_URL}runs/copies"),
    "a number": (["checkpoints.mirror=3"], f"{NOT_A_URL}3"),
    "a URL without a bucket": (["checkpoints.mirror=s3://"], NO_BUCKET),
    "a store without an account": (["checkpoints.mirror=az://c/p"], NO_ACCOUNT),
    "a run without callbacks": (["checkpoints.mirror=s3://b/p", "callbacks=none"], UNUSED),
}


@pytest.mark.parametrize(("overrides", "expected"), INVALID_MIRRORS.values(), ids=INVALID_MIRRORS.keys())
def test_an_invalid_mirror_is_rejected_in_one_line(
    overrides: list[str], expected: str, command: Command, tmp_path: Path
):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AZURE_")}
    _assert_refused(command(*overrides, env=environment), expected, tmp_path)


def _assert_refused(result: CompletedProcess[str], expected: str, folder: Path) -> None:
    assert result.returncode == 2, result.stdout + result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"stormproof: {expected}")
    assert not [*folder.rglob("*.ckpt"), *folder.rglob("run.json")]
