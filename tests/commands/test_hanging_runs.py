"""Runs that hang, through the real command line: they end with code 78, and the same command goes on."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.forked_command import ROOT, Command

pytestmark = pytest.mark.slow

TIMEOUT = 3.0
FAULTS = """
import json, os, threading
from stormproof.testing import FaultInjector

def faults():
    ordered = json.loads(os.environ.get("FAULT", "null"))
    if ordered is None or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        return FaultInjector()
    if ordered.pop("stands_still", False):
        return FaultInjector().slow(3600, **ordered)
    return FaultInjector().stop(**ordered)
"""
OVERRIDES = (
    "callbacks.faults._target_=mine.faults", "callbacks.recovery.every_n_train_steps=7",
    "trainer.max_epochs=3", "name=run",
    f"callbacks.hang_watch.timeout_seconds={TIMEOUT}",
)  # fmt: skip
RANKS = ("trainer.devices=2", "trainer.strategy=ddp", "trainer.accelerator=cpu")


@pytest.fixture
def hanging(command: Command, tmp_path: Path):
    """Starts the command with a fault ordered."""
    (tmp_path / "mine.py").write_text(FAULTS)

    def run(*overrides: str, **fault: Any) -> subprocess.CompletedProcess[str]:
        return command(*OVERRIDES, *overrides, env={**os.environ, "FAULT": json.dumps(fault)})

    return run


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "runs/run/run.json").read_text())


def test_a_run_that_hangs_says_so_and_the_same_command_ends_it(hanging, command: Command, tmp_path: Path):
    result = hanging(at="on_train_batch_end", step=15, stands_still=True)
    assert result.returncode == 78, result.stderr
    assert "hang: rank 0 made no progress for 3 s at step 15, in train: in " in result.stderr
    assert "Traceback" not in result.stderr
    assert "in trigger" in (tmp_path / "runs/run/hang-rank0.txt").read_text()
    written = record(tmp_path)
    (attempt,) = written["attempts"]
    assert (written["status"], attempt["code"], attempt["last_step"]) == ("failed", 78, 15)
    assert f"stormproof: {attempt['reason']}".removeprefix("stormproof: ") in result.stderr
    rerun = command(*OVERRIDES)
    assert rerun.returncode == 0, rerun.stderr
    assert "resuming from step 14 (" in rerun.stdout
    assert record(tmp_path)["status"] == "finished"


@pytest.mark.drill
def test_of_two_ranks_rank_zero_carries_the_code_and_ends_the_one_that_is_stopped(
    hanging, command: Command, tmp_path: Path
):
    result = hanging(*RANKS, at="on_train_batch_end", step=15, rank=1)
    assert result.returncode == 78, result.stderr
    (attempt,) = record(tmp_path)["attempts"]
    assert attempt["reason"].endswith("rank 1 wrote no report (suspended or terminated)")
    assert attempt["code"] == 78
    rerun = command(*OVERRIDES, *RANKS)
    assert rerun.returncode == 0, rerun.stderr
    assert "resuming from step 14 (" in rerun.stdout
    assert record(tmp_path)["status"] == "finished"


@pytest.mark.drill
def test_a_suspended_rank_zero_exits_with_78(hanging, command: Command, tmp_path: Path):
    result = hanging(*RANKS, at="on_train_batch_end", step=15, rank=0)
    assert result.returncode == 78, result.stderr
    assert "hang: rank 1 of 2 made no progress for 3 s at step 15, in train: " in result.stderr
    assert "rank 0 wrote no report (suspended or terminated)" in result.stderr
    assert command(*OVERRIDES, *RANKS).returncode == 0
    first, second = record(tmp_path)["attempts"]
    assert first["reason"].startswith(
        "hang: rank 0 of 2 was suspended and the other ranks made no progress at step 15, in train: "
    )
    assert (first["code"], first["last_step"], second["code"]) == (78, 15, 0)


@pytest.mark.drill
def test_torchrun_starts_a_run_again_that_hung(tmp_path: Path):
    """Both ranks leave by themselves: for one that is stopped, it would wait half a minute."""
    (tmp_path / "mine.py").write_text(FAULTS)
    fault = {"at": "on_train_batch_end", "step": 15, "rank": 1, "stands_still": True}
    overrides = [*OVERRIDES, *RANKS, "logger=none"]
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1", str(ROOT / "train.py")]
    result = subprocess.run(
        [sys.executable, "-m", *launch, *overrides], cwd=tmp_path, capture_output=True, text=True, timeout=250,
        check=False,
        env={**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "FAULT": json.dumps(fault)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    first, second = record(tmp_path)["attempts"]
    assert (first["code"], second["code"], second["first_step"]) == (78, 0, 14)
