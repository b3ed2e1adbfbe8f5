"""Stormproof works in packages that know nothing of it, each as its documentation uses it.

Every package gets its own environment, with the version in ``requirements/``. Environments are temporary, unless
``STORMPROOF_THIRD_PARTY`` is a folder to keep them in.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RECIPES = sorted(path.stem for path in (HERE / "requirements").glob("*.txt"))
KILLED_AFTER = 60

INEXACT = {"gluonts_deepar": "IterableSlice does not save its position"}
"""What CheckpointRecovery warns of if a package's loader cannot resume exactly."""
STARVED = {"gluonts_deepar", "lightly_simsiam", "pytorch_forecasting_nbeats"}
"""Recipes without workers whose data take longer than their small networks: TrainingHealth may report that."""

pytestmark = [pytest.mark.third_party, pytest.mark.timeout(1800)]


@dataclass(frozen=True)
class Package:
    """An environment with a package and Stormproof."""

    recipe: str
    python: Path
    folder: Path

    def start(self, mode: str, folder: str, *options: str) -> "subprocess.CompletedProcess[str]":
        command = [self.python, "-m", "tests.third_party.run", self.recipe, mode, self.folder / folder, *options]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)

    def train(self, mode: str, folder: str) -> dict[str, Any]:
        process = self.start(mode, folder)
        assert process.returncode == 0, process.stderr[-3000:]
        return json.loads(process.stdout.splitlines()[-1])


@cache
def environment(recipe: str, folder: Path) -> Path:
    """Returns the interpreter of an environment with the package of ``recipe``."""
    python = folder / recipe / "bin" / "python"
    requirements = HERE / f"requirements/{recipe}.txt"
    if not python.exists():
        subprocess.run(["uv", "venv", "--quiet", "--python", sys.executable, folder / recipe], check=True)
    install = ["uv", "pip", "install", "--quiet", "--python", python, "-r", requirements, "-e", ROOT]
    subprocess.run(install, check=True)
    return python


@pytest.fixture(
    scope="module", params=[pytest.param(recipe, marks=pytest.mark.xdist_group(recipe)) for recipe in RECIPES]
)
def package(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Package:
    environments_folder = os.environ.get("STORMPROOF_THIRD_PARTY")
    folder = Path(environments_folder) if environments_folder else tmp_path_factory.getbasetemp() / "environments"
    return Package(request.param, environment(request.param, folder), tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def monitored(package: Package) -> dict[str, Any]:
    return package.train("monitored", "monitored")


def test_all_callbacks_change_no_bit_of_the_weights(package: Package, monitored: dict[str, Any]):
    plain = package.train("plain", "plain")
    assert (plain["weights"], plain["steps"]) == (monitored["weights"], monitored["steps"])
    assert plain["loss"][1] < plain["loss"][0]


def test_healthy_training_has_no_findings(package: Package, monitored: dict[str, Any]):
    assert monitored["findings"] is not None
    problems = [finding for finding in monitored["findings"] if not finding.startswith("info")]
    if package.recipe in STARVED:
        problems = [finding for finding in problems if "DATA_STARVATION" not in finding]
    assert not problems


def test_a_killed_run_resumes_exactly_or_the_user_is_warned(package: Package):
    uninterrupted = package.train("resumable", "whole")
    assert package.start("resumable", "killed", f"--kill={KILLED_AFTER}").returncode == -9
    resumed = package.train("resumable", "killed")
    if package.recipe in INEXACT:
        assert any(INEXACT[package.recipe] in warning for warning in resumed["inexact"])
    else:
        assert not resumed["inexact"]
        assert (resumed["weights"], resumed["steps"]) == (uninterrupted["weights"], uninterrupted["steps"])
