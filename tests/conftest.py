"""What every test stands on: one torch thread, no account, and the real command line."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: tests run side by side
for name in [name for name in os.environ if name.startswith(("WANDB_", "SLURM_", "HYDRA_"))]:
    del os.environ[name]
os.environ["NETRC"] = os.devnull  # an API key of whoever runs the tests stays theirs

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """``python train.py …`` in an empty folder, without a logger unless the words choose one."""

    def run(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
        chosen = [] if any(word.startswith("logger=") for word in words) else ["logger=none"]
        return subprocess.run(
            [sys.executable, str(ROOT / "train.py"), *words, *chosen],
            check=False,
            **{"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 200, **options},
        )

    return run
