import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning.loggers import TensorBoardLogger

from stormproof_train import loggers
from stormproof_train.errors import UserError
from stormproof_train.loggers import has_api_key, none, tensorboard_logger, wandb_logger
from tests.support.forked_command import ROOT

KEYS: dict[str, tuple[dict[str, str], str | None, bool]] = {
    "nothing": ({}, None, False),
    "a variable": ({"WANDB_API_KEY": "k"}, None, True),
    "an empty variable": ({"WANDB_API_KEY": ""}, None, False),
    "an identity": ({"WANDB_IDENTITY_TOKEN_FILE": "/token"}, None, True),
    "a login": ({}, "machine api.wandb.ai\n  login user\n  password k\n", True),
    "another host's login": ({}, "machine example.org login user password k\n", False),
    "a login at one's own host": (
        {"WANDB_BASE_URL": "https://wandb.example.org:8080/x"},
        "machine wandb.example.org:8080 login user password k\n",
        True,
    ),
    "a login at W&B for one's own host": (
        {"WANDB_BASE_URL": "https://wandb.example.org"},
        "machine api.wandb.ai login user password k\n",
        False,
    ),
    "a damaged login": ({}, "machine api.wandb.ai login\n!!! x", False),
    "an empty file": ({}, "", False),
}


@pytest.mark.parametrize(("environ", "netrc", "expected"), KEYS.values(), ids=KEYS.keys())
def test_a_key_is_looked_for_where_wandb_does(
    environ: dict[str, str], netrc: str | None, expected: bool, tmp_path: Path
):
    file = tmp_path / "netrc"
    if netrc is not None:
        file.write_text(netrc)
    assert has_api_key({"NETRC": str(file), **environ}) is expected


def test_a_key_in_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert has_api_key({}) is False
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password k\n")
    assert has_api_key({}) is True


@pytest.mark.parametrize(("mode", "variable"), [("online", None), ("auto", "online")])
def test_online_without_a_key_is_a_sentence_and_asks_nothing(
    mode: Any, variable: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if variable:
        monkeypatch.setenv("WANDB_MODE", variable)
    monkeypatch.setattr(loggers, "has_api_key", lambda: False)
    with pytest.raises(UserError, match="Set WANDB_API_KEY, run wandb login"):
        wandb_logger(tmp_path, {}, "mine", mode=mode)
    assert not list(tmp_path.iterdir())


def test_no_logger_is_none(tmp_path: Path):
    assert none(tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_tensorboard_writes_into_the_run_folder(tmp_path: Path):
    logger = tensorboard_logger(tmp_path)
    assert isinstance(logger, TensorBoardLogger)
    logger.log_metrics({"loss": 0.5}, step=1)
    logger.finalize("success")
    (events,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
    assert b"loss" in events.read_bytes()
    assert [entry.name for entry in tmp_path.iterdir()] == ["tensorboard"]


def test_tensorboard_that_is_not_installed_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[tensorboard\]'"):
        tensorboard_logger(tmp_path)


RUN = """
import json, sys, warnings
from pathlib import Path
warnings.simplefilter("error")
import wandb
from stormproof import CheckpointRecovery
from stormproof_train.loggers import close_loggers, wandb_logger

folders = [Path("runs/first"), Path("runs/second")]
for failed, folder in zip((True, False), folders):
    folder.mkdir(parents=True)
    logger = wandb_logger(folder, {"seed": 3, "model": {"width": 8}}, folder.name, group="g", tags=["t"])
    run = logger.experiment
    logger.log_metrics({"loss": 0.5}, step=1)
    told = {"name": run.name, "project": run.project, "group": run.group, "tags": run.tags, "config": dict(run.config)}
    told["job_type"] = run.job_type
    print("told", json.dumps(told))
    close_loggers([logger], failed, CheckpointRecovery(folder / "checkpoints"), folder)
    assert wandb.run is None
close_loggers([], False)  # nothing is open: nothing happens
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", [None, "disabled"])
def test_a_run_without_a_key_is_kept_in_its_folder_and_ends_cleanly(mode: str | None, tmp_path: Path):
    environ = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    environ |= {"HOME": str(tmp_path / "home"), "NETRC": str(tmp_path / "netrc"), "TMPDIR": str(tmp_path)}
    (tmp_path / "home").mkdir()
    if mode:
        environ["WANDB_MODE"] = mode
    result = subprocess.run(
        [sys.executable, "-c", RUN],
        cwd=tmp_path,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    values = [json.loads(line.removeprefix("told ")) for line in lines if line.startswith("told ")]
    assert [run["config"] for run in values] == [{"seed": 3, "model": {"width": 8}}] * 2
    if mode == "disabled":
        assert len(lines) == 2
        assert not list(tmp_path.rglob("*.wandb"))
        return
    assert values[1] == {
        "name": "second",
        "project": "stormproof",
        "group": "g",
        "job_type": "train",
        "tags": ["t"],
        "config": {"seed": 3, "model": {"width": 8}},
    }
    sentences = [line for line in lines if not line.startswith("told ")]
    for sentence, name in zip(sentences, ("first", "second"), strict=True):
        (file,) = (tmp_path / "runs" / name).rglob("*.wandb")
        files = file.parent.relative_to(tmp_path)
        assert sentence == (
            f"W&B: offline (no API key); to upload the run: wandb sync {files}; to view it: wandb leet run {files}"
        )
        assert b"loss" in file.read_bytes()
        assert file.parent.parent == tmp_path / "runs" / name / "wandb"


AWAY = """
import os
from pathlib import Path
from stormproof_train import loggers
from tests.support.wandb_server import WandbServer

loggers.FINISH_TIMEOUT_SECONDS = 1.0
with WandbServer() as server:
    os.environ |= server.environ
    logger = loggers.wandb_logger(Path("."), {}, "mine", mode="online")
logger.log_metrics({"loss": 0.5}, step=1)
loggers.close_loggers([logger], failed=False)
"""


@pytest.mark.drill
def test_a_server_that_goes_away_is_not_waited_for_without_end(tmp_path: Path):
    environ = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    overrides = [sys.executable, "-c", AWAY]
    result = subprocess.run(
        overrides,
        cwd=tmp_path,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    (file,) = tmp_path.glob("wandb/run-*/run-*.wandb")
    sentence = "warning: W&B did not receive the whole run in 1 s; to upload it: wandb sync "
    assert result.stdout.splitlines()[-1] == f"{sentence}{file.parent.relative_to(tmp_path)}"
    assert b"loss" in file.read_bytes()


def test_other_ranks_open_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import wandb

    monkeypatch.setenv("RANK", "1")
    assert wandb_logger(tmp_path, {}, "mine", mode="offline") is not None
    assert wandb.run is None
    assert not list(tmp_path.iterdir())
