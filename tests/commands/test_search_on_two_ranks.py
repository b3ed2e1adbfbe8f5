"""Trials of two ranks: stopped for good, or waiting and promoted, both ranks leave at the same step."""

import json
from pathlib import Path

import psutil
import pytest

from tests.support.forked_command import Command

MINE = """
import os
from pytorch_lightning import Callback

class Leaves(Callback):
    def on_exception(self, trainer, *args):
        with open("left.txt", "a") as file:
            file.write(f"{trainer.global_rank} {trainer.global_step} {os.getpid()}\\n")
"""
WORDS = (
    "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "trainer.max_epochs=6", "optimizer.lr=0.01,0",
    "search.sampler=grid", "search.rungs=1", "search.final_seeds=0", "search.name=mine",
)  # fmt: skip


@pytest.mark.drill
def test_both_ranks_of_a_trial_leave_at_the_same_step_and_go_on_together(command: Command, tmp_path: Path):
    (tmp_path / "mine.py").write_text(MINE)
    result = command("search", *WORDS, "callbacks.leaves._target_=mine.Leaves")
    assert result.returncode == 0, result.stderr
    answer = json.loads((tmp_path / "searches/mine/answer.json").read_text())
    learns, never_learns = sorted(answer["trials"], key=lambda entry: -float(entry["params"]["optimizer.lr"]))
    assert [(entry["state"], entry["steps"]) for entry in (learns, never_learns)] == [("complete", 120), ("pruned", 20)]
    assert never_learns["reason"].startswith("critical: LEARNING_RATE_ZERO")
    waited, critical = (
        json.loads((tmp_path / f"searches/mine/trials/trial-{entry['number']:04d}/run.json").read_text())["attempts"]
        for entry in (learns, never_learns)
    )
    assert [(entry["ranks"], entry["first_step"], entry["last_step"]) for entry in waited] == [(2, 0, 40), (2, 40, 120)]
    assert [(entry["ranks"], entry["first_step"], entry["last_step"]) for entry in critical] == [(2, 0, 20)]
    left = sorted(tuple(map(int, line.split())) for line in (tmp_path / "left.txt").read_text().splitlines())
    assert [(rank, step) for rank, step, _ in left] == [(0, 20), (0, 40), (1, 20), (1, 40)]
    assert not any(psutil.pid_exists(pid) for _, _, pid in left)
