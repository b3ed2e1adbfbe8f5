"""What every test stands on: one torch thread, no account, and the real command line."""

import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import forked_command
import pytest

ROOT = Path(__file__).resolve().parents[1]

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: tests run side by side
for name in [name for name in os.environ if name.startswith(("WANDB_", "SLURM_", "HYDRA_"))]:
    del os.environ[name]
os.environ["NETRC"] = os.devnull  # an API key of whoever runs the tests stays theirs

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def _seed() -> None:
    """The same weights and data in every run of the tests, in whatever order."""
    import torch

    torch.manual_seed(0)


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """``python train.py …`` in an empty folder, without a logger and a report unless the words choose one."""

    def run(*words: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        quiet = {"logger": "none", "report": "false"}
        chosen = [f"{key}={value}" for key, value in quiet.items() if not any(w.startswith(f"{key}=") for w in words)]
        return forked_command.run([*words, *chosen], cwd=tmp_path, env=os.environ if env is None else env, timeout=200)

    return run
