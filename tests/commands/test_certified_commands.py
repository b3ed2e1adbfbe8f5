"""``stormproof certify`` finds that our own commands resume exactly."""

import json
import os
import sys
from pathlib import Path

import pytest

from stormproof.cli import main
from tests.support import forked_command
from tests.support.forked_command import ROOT, TRAIN

pytestmark = pytest.mark.drill
EXAMPLE = ROOT / "scripts" / "examples" / "stock_lightning.py"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of the certified command."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def certify(*command: str, faults: tuple[str, ...]) -> None:
    """Certifies ``python <command>``, and asserts that it resumes exactly after each of ``faults``."""
    options = ("--max-faults", str(len(faults)), "--faults", ",".join(faults), "--budget", "5m", "--jobs", "1")
    code = main.main(["certify", *options, "--", sys.executable, *command])
    report = json.loads(Path("certify/report.json").read_text())
    assert [fault["verdict"] for fault in report["faults"]] == ["exact"] * len(faults), report
    assert all(fault["compared_steps"] > 0 for fault in report["faults"])
    assert code == 0


def test_a_training_of_the_application_resumes_exactly():
    certify(
        str(TRAIN), "trainer.max_epochs=2", "callbacks.recovery.every_n_train_steps=5", "logger=none", "report=false",
        "name=mine", faults=("kill", "epoch-end", "mid-save"),
    )  # fmt: skip


def test_a_lightning_script_with_the_plugin_resumes_exactly(folder: Path):
    text = EXAMPLE.read_text()
    assert "max_epochs=20" in text
    (folder / "script.py").write_text(text.replace("max_epochs=20", "max_epochs=4"))
    certify("script.py", "checkpoints", faults=("kill", "epoch-end", "mid-save"))


def test_a_search_whose_trials_are_processes_resumes_exactly():
    certify(
        str(TRAIN), "search", "activation=relu,elu", "search.trials=2", "search.workers=1", "search.rungs=1",
        "search.final_seeds=0",
        "trainer.max_epochs=2", "callbacks.recovery.every_n_train_steps=5", "logger=none", "search.name=mine",
        faults=("kill",),
    )  # fmt: skip


def test_a_compression_that_fine_tunes_resumes_exactly(folder: Path):
    trained = forked_command.run(
        ["name=mine", "trainer.max_epochs=3", "logger=none", "report=false"], cwd=folder, env=os.environ, timeout=100
    )
    assert trained.returncode == 0, trained.stderr
    certify(
        str(TRAIN), "compress", "run=runs/mine", "budget=5pp", "minimize=size", "methods=[prune]", "timing=0.02",
        "training=0.5", "logger=none", faults=("kill",),
    )  # fmt: skip
