"""``stormproof certify`` finds that our own commands resume exactly."""

import json
import shlex
import sys
from pathlib import Path

import pytest

from stormproof.cli import main
from tests.support.forked_command import ROOT

COMMANDS = {
    "the application": [
        str(ROOT / "train.py"), "trainer.max_epochs=2", "callbacks.recovery.every_n_train_steps=5", "logger=none",
        "report=false", "name=mine",
    ],
    "a Lightning script": ["script.py", "checkpoints"],
}  # fmt: skip
EXAMPLE = ROOT / "scripts" / "examples" / "stock_lightning.py"


@pytest.mark.drill
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_resumes_exactly_after_each_fault(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    text = EXAMPLE.read_text()
    assert "max_epochs=20" in text
    Path("script.py").write_text(text.replace("max_epochs=20", "max_epochs=4"))
    options = "certify --max-faults 3 --faults kill,epoch-end,mid-save --budget 5m --jobs 1 --"
    code = main.main([*shlex.split(options), sys.executable, *COMMANDS[name]])
    assert code == 0, capsys.readouterr()
    report = json.loads((tmp_path / "certify" / "report.json").read_text())
    assert [fault["verdict"] for fault in report["faults"]] == ["exact"] * 3
    assert all(fault["compared_steps"] > 0 for fault in report["faults"])
