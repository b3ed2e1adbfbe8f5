"""``scripts/drill.py``: a training under torchrun, struck by every kind of fault."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

DRILL = [sys.executable, str(ROOT / "scripts" / "drill.py")]
TRAINING = [
    str(ROOT / "train.py"), "runs_dir={folder}", "name=run", "logger=none", "trainer.max_epochs=40",
    "callbacks.recovery.every_n_steps=25", "callbacks.divergence_guard.budget=1000",
    "callbacks.ordered._target_=stormproof.testing.ordered", "restarts_without_progress=null",
]  # fmt: skip


def drilled(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*DRILL, *words], cwd=folder, capture_output=True, text=True, timeout=500, check=False)


@pytest.mark.drill
@pytest.mark.timeout(600)
def test_a_training_survives_every_kind_of_fault_and_ends_with_the_same_bits(tmp_path: Path):
    done = drilled(tmp_path, "--faults", "8", "--seed", "3", "--", *TRAINING)
    assert done.returncode == 0, done.stdout + done.stderr
    survived, restarts, *_ = done.stdout.strip().splitlines()[-5:]
    assert survived == "8 faults survived: 1 kill, 1 term, 1 pause, 1 torn, 1 flip, 1 full, 1 nan, 1 spike"
    assert re.fullmatch(r"4 restarts, \d+ steps done again of 800", restarts)
    assert done.stdout.endswith("weights and optimizers: the same, to the last bit\n")


@pytest.mark.drill
def test_a_training_that_keeps_no_checkpoints_is_told_apart(tmp_path: Path):
    script = tmp_path / "nothing.py"
    script.write_text("print('trained')\n")
    done = drilled(tmp_path, "--faults", "1", "--", str(script))
    assert done.returncode == 1
    assert "no checkpoint of CheckpointRecovery is below " in done.stderr
    assert "put {folder} into the command" in done.stderr


@pytest.mark.drill
def test_a_training_that_fails_by_itself_is_shown(tmp_path: Path):
    script = tmp_path / "broken.py"
    script.write_text("raise RuntimeError('by itself')\n")
    done = drilled(tmp_path, "--faults", "1", "--", str(script))
    assert done.returncode == 1
    assert "though nothing struck it" in done.stderr
    assert "by itself" in done.stderr
