"""Tests of ``scripts/drill.py``: a training run under torchrun with every kind of fault."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.forked_command import ROOT

DRILL = [sys.executable, str(ROOT / "scripts" / "drill.py")]
TRAINING = [
    str(ROOT / "train.py"), "runs_dir={folder}", "name=run", "logger=none", "trainer.max_epochs=40",
    "callbacks.recovery.every_n_train_steps=25", "callbacks.divergence_guard.max_rollbacks=1000",
    "callbacks.faults._target_=stormproof.testing.faults_from_environment", "max_restarts_without_progress=null",
]  # fmt: skip


def run_drill(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*DRILL, *arguments], cwd=folder, capture_output=True, text=True, timeout=500, check=False)


@pytest.mark.drill
@pytest.mark.timeout(600)
def test_a_training_survives_every_kind_of_fault_and_ends_with_the_same_bits(tmp_path: Path):
    result = run_drill(tmp_path, "--faults", "8", "--seed", "3", "--", *TRAINING)
    assert result.returncode == 0, result.stdout + result.stderr
    survived, restarts, *_ = result.stdout.strip().splitlines()[-5:]
    assert survived == "8 faults survived: 1 kill, 1 term, 1 pause, 1 torn, 1 flip, 1 full, 1 nan, 1 spike"
    # kill, term, torn, flip; and a fifth if the training run finished while the disk was full
    assert re.fullmatch(r"[45] restarts, \d+ of 800 steps repeated", restarts)
    assert result.stdout.endswith("weights and optimizers: bit-identical\n")


@pytest.mark.drill
@pytest.mark.parametrize(
    ("script", "words"),
    [
        (
            "print('trained')",
            [" contains no checkpoint. ", "Use {folder} in the command and add CheckpointRecovery to the callbacks."],
        ),
        ("raise RuntimeError('by itself')", ["without an injected fault", "by itself"]),
    ],
    ids=["keeps no checkpoints", "fails by itself"],
)
def test_a_command_without_checkpoints_or_with_an_error_is_reported(script: str, words: list[str], tmp_path: Path):
    (tmp_path / "script.py").write_text(script)
    result = run_drill(tmp_path, "--faults", "1", "--", "script.py")
    assert result.returncode == 1
    assert all(word in result.stderr for word in words), result.stderr


@pytest.mark.drill
def test_missing_callback_for_data_faults_is_reported(tmp_path: Path):
    arguments = [word for word in TRAINING if "faults_from_environment" not in word]
    result = run_drill(tmp_path, "--faults", "2", "--kinds", "nan", "spike", "--", *arguments, "trainer.max_steps=60")
    assert result.returncode == 1
    assert "No nan or spike fault occurred. Add stormproof.testing.faults_from_environment" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--faults", "0"], "--faults and --nproc-per-node must be at least 1"),
        (["--nproc-per-node", "0"], "--faults and --nproc-per-node must be at least 1"),
        (["--folder", "."], "--folder . already exists. Remove it or choose another folder."),
    ],
)
def test_an_invalid_argument_is_reported_before_the_command_starts(words: list[str], message: str, tmp_path: Path):
    result = run_drill(tmp_path, *words, "--", "script.py")
    assert result.returncode == 2
    assert message in result.stderr
