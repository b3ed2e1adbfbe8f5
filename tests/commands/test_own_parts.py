"""Trains the model and the data module that docs/application.md shows."""

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.support.forked_command import ROOT, Command

PAGE = (ROOT / "docs/application.md").read_text()


@pytest.mark.slow
def test_the_documented_model_and_data_train(command: Command, tmp_path: Path):
    (tmp_path / "mine.py").write_text(re.findall(r"```python\n# mine.py\n(.*?)```", PAGE, re.DOTALL)[0])
    rows = [f"{age},{age % 3},{'ill' if age > 50 else 'well'}" for age in range(20, 80)]
    (tmp_path / "patients.csv").write_text("\n".join(["age,visits,outcome", *rows]))
    commands = re.findall(r"\$ python train.py (model\._target_=mine.*)", PAGE)
    assert len(commands) == 2
    for arguments in commands:
        result = command(*shlex.split(arguments), "trainer.max_epochs=1")
        assert result.returncode == 0, result.stderr
    for name in ("mine", "patients"):
        assert json.loads((tmp_path / "runs" / name / "run.json").read_text())["status"] == "finished"
