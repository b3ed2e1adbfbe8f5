"""Runs the benchmark scripts in a reduced form, so that they continue to work."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "scripts" / "benchmarks"
REDUCED = [
    ("evaluation.py", "--reduced"),
    ("monitored_runs.py", "--reduced"),
    ("report.py", "--reduced --layers 2 --samples 200"),
]
"""Scripts and the arguments with which they take seconds."""


@pytest.mark.slow
@pytest.mark.parametrize(("script", "arguments"), REDUCED, ids=[script for script, _ in REDUCED])
def test_a_benchmark_runs_and_prints_figures(script: str, arguments: str):
    command = [sys.executable, str(BENCHMARKS / script), *arguments.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert any(character.isdigit() for character in done.stdout)
