"""Commands that need no torch do not import it: they answer in a fraction of a second."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from stormproof_train.cli.registry import SUBCOMMANDS
from tests.support.forked_command import TRAIN
from tests.support.run_folders import training_rows, write_run

HEAVY_PACKAGES = {"torch", "pytorch_lightning", "torchmetrics", "torchvision", "numpy", "pandas", "scipy", "sklearn"}
TRAIN_COMMAND = [str(TRAIN)]
PLUGIN_COMMAND = ["-m", "stormproof.cli.main"]

LIGHT_COMMANDS = {
    "the help": ([*TRAIN_COMMAND, "--help"], 0, "Add a choice to list its arguments"),
    **{
        f"the help of {name}": ([*TRAIN_COMMAND, name, "--help"], 0, f"stormproof-train {name}")
        for name in SUBCOMMANDS
        if name != "train"
    },
    "an unknown choice": ([*TRAIN_COMMAND, "activation=eluu"], 2, "activation=eluu does not exist. Choices: elu, "),
    "an unknown group": ([*TRAIN_COMMAND, "activaton=elu"], 2, "Did you mean activation?"),
    "an invalid setting": ([*TRAIN_COMMAND, "seed=-1"], 2, "seed must be a whole number"),
    "a run without length": ([*TRAIN_COMMAND, "trainer.max_epochs=0"], 2, "trainer.max_epochs must not be 0"),
    "a setting with dashes": ([*TRAIN_COMMAND, "--seed=1"], 2, "settings have no dashes"),
    "an unknown command": ([*TRAIN_COMMAND, "trian"], 2, "unknown command trian"),
    "a report of nothing": ([*TRAIN_COMMAND, "report"], 2, "report: the following arguments are required"),
    "an unknown option of evaluate": ([*TRAIN_COMMAND, "evaluate", "chekpoint=x"], 2, "Did you mean checkpoint?"),
    "the help of the plugin": ([*PLUGIN_COMMAND, "--help"], 0, "Manages folders of checkpoints"),
    "the help of a command of the plugin": ([*PLUGIN_COMMAND, "doctor", "--help"], 0, "usage: stormproof doctor"),
    "the help of certify": ([*PLUGIN_COMMAND, "certify", "--help"], 0, "stormproof certify --resume-command"),
    "a certification without a command": ([*PLUGIN_COMMAND, "certify"], 2, "The command is missing"),
    "a list": ([*PLUGIN_COMMAND, "list", "."], 0, "contains no checkpoint"),
    "a misspelt command of the plugin": ([*PLUGIN_COMMAND, "lisst"], 2, "invalid choice: 'lisst'"),
}


@pytest.mark.parametrize(("arguments", "code", "message"), LIGHT_COMMANDS.values(), ids=LIGHT_COMMANDS)
def test_a_light_command_imports_no_torch(arguments: list[str], code: int, message: str, tmp_path: Path):
    result, packages = _run(arguments, tmp_path)
    assert result.returncode == code, result.stderr
    assert message in result.stdout + result.stderr
    assert packages & HEAVY_PACKAGES == set()


def test_a_report_of_a_finished_run_imports_no_torch(tmp_path: Path):
    write_run(tmp_path / "run", rows=training_rows(100), changed=[{"key": "seed", "value": 3}])
    result, packages = _run([*TRAIN_COMMAND, "report", "run"], tmp_path)
    assert result.stdout == "report: run/report.html\n"
    assert packages & {"torch", "pytorch_lightning", "hydra"} == set()


@pytest.mark.slow
def test_a_run_without_wandb_search_and_shards_does_not_import_their_packages(tmp_path: Path):
    (tmp_path / "first_step.py").write_text(
        "import sys, pytorch_lightning as pl\n"
        "class Exit(pl.Callback):\n"
        "    def on_train_batch_end(self, *args):\n"
        "        print('modules', *sys.modules, flush=True)\n"
        "        sys.exit()\n"
    )
    arguments = [*TRAIN_COMMAND, "logger=none", "trainer=cpu", "callbacks.exit._target_=first_step.Exit"]
    result, _ = _run(arguments, tmp_path)
    modules = re.search(r"^modules (.*)$", result.stdout, re.MULTILINE)
    assert modules is not None, result.stderr
    assert set(modules[1].split()) & {"torch.distributed.checkpoint", "wandb", "optuna"} == set()


def _run(arguments: list[str], folder: Path) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """Returns the result of a command, and the packages that it imported."""
    result = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        cwd=folder, env={**os.environ, "COLUMNS": "200"}, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    names = re.findall(r"^import time: +\d+ \| +\d+ \| +([\w.]+)$", result.stderr, re.MULTILINE)
    assert len(names) > 50, "an import is not recognized as such"
    return result, {name.partition(".")[0] for name in names}
