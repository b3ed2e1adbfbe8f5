"""``scripts/wandb_dashboard.py``: the workspace that it saves, and that runs log what its panels show."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stormproof_train.run.metrics_rows import read_metrics
from tests.support.forked_command import ROOT, Command
from tests.support.wandb_server import ENTITY, WandbServer

SCRIPT = str(ROOT / "scripts" / "wandb_dashboard.py")
MINE = """
import json, os
from stormproof.testing import FaultInjector

def faults():
    return FaultInjector().kill(step=12) if "KILL" in os.environ else FaultInjector().nan(step=15)
"""
SECTIONS = ["Progress", "Gradients", "Neurons", "Recovery", "Time", "Comparison of activations and losses"]


def make_workspace(folder: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments], cwd=folder, env={**os.environ, **environ}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip


def iter_strings(spec: Any) -> Iterator[tuple[str, str]]:
    """All texts of a specification, each with the key that it is under."""
    for key, value in spec.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict):
                yield from iter_strings(item)
            elif isinstance(item, str):
                yield key, item


@pytest.mark.slow
def test_what_is_saved_is_what_is_written_offline(tmp_path: Path):
    make_workspace(tmp_path, "--offline", "workspace.json")
    written = json.loads((tmp_path / "workspace.json").read_text())
    with WandbServer() as server:
        output = make_workspace(tmp_path, "--project", "mine", **server.environ).stdout
        (view,) = server.views
    assert server.unknown_operations == []
    assert output.startswith(f"{server.url}/{ENTITY}/mine?nw=")
    assert (view["entityName"], view["projectName"], view["displayName"]) == (ENTITY, "mine", "Stormproof")
    panels = [
        [(section["name"], [panel["config"] for panel in section["panels"]]) for section in bank["sections"]]
        for bank in (spec["section"]["panelBankConfig"] for spec in (written["spec"], json.loads(view["spec"])))
    ]
    assert panels[0] == panels[1]
    assert [name for name, _ in panels[0]][: len(SECTIONS)] == SECTIONS


@pytest.fixture
def logged(command: Command, tmp_path: Path) -> set[str]:
    """The names that two runs log: one that was killed, diverged once and was clipped; and a regression."""
    (tmp_path / "mine.py").write_text(MINE)
    overrides = ["trainer.max_epochs=1", "trainer.log_every_n_steps=5", "trainer.gradient_clip_val=1"]
    kind = [
        *overrides,
        "name=kind",
        "callbacks.faults._target_=mine.faults",
        "callbacks.divergence_guard.lr_factor=0.5",
    ]
    assert command(*kind, env={**os.environ, "KILL": "yes"}).returncode == -9
    for arguments in (kind, [*overrides, "name=other", "data=diabetes"]):
        result = command(*arguments)
        assert result.returncode == 0, result.stderr
    return {name for run in ("kind", "other") for name in read_metrics(tmp_path / "runs" / run / "metrics.csv")}


@pytest.mark.slow
def test_every_name_and_pattern_is_one_that_a_run_logs(logged: set[str], tmp_path: Path):
    make_workspace(tmp_path, "--offline", "workspace.json")
    panel_names = set(
        iter_strings(json.loads((tmp_path / "workspace.json").read_text())["spec"]["section"]["panelBankConfig"])
    )
    names = {text.removeprefix("summary:") for key, text in panel_names if key in {"metrics", "yAxis"}}
    patterns = {text for key, text in panel_names if key == "metricRegex"}
    assert {"train/loss", "val/r2", "test/accuracy", "recovery/seconds"} <= names
    assert names <= logged
    assert len(patterns) == 5
    assert {pattern for pattern in patterns if not any(re.search(pattern, name) for name in logged)} == set()
