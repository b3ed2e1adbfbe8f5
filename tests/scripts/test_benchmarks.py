"""Runs the benchmark scripts in a reduced form, so that they continue to work."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import forked_command
from tests.support.forked_command import ROOT

BENCHMARKS = ROOT / "scripts" / "benchmarks"
REDUCED = [
    ("bundled_data.py", "compare --data diabetes --seeds 0"),
    ("certify_bank_run.py", "vectors/ring_gan.py"),
    ("channel_blocks.py", "--rounds 1 --networks 1"),
    ("corruptions.py", "--count 20"),
    ("diagnosis.py", "--part development --seeds 1 --only columns_of_the_table --peers --quiet"),
    ("evaluation.py", "--reduced"),
    ("false_alarms.py", "--steps 40 --seeds 1"),
    ("hook_times.py", "--steps 200"),
    ("int8_layers.py", "--rounds 1 --networks ELU"),
    ("monitored_runs.py", "--reduced"),
    ("monitoring.py", "--workload mlp --rounds 2 --steps 20 --variants TrainingHealth"),
    ("random_kills.py", "--kills 1 --epochs 1"),
    ("random_kills.py", "--matrix 1 --seed 6"),
    ("report.py", "--reduced --layers 2 --samples 200"),
    ("resumable_loader.py", "--rounds 2 --samples 320 --images 64 --shuffled 3200"),
    ("search.py", "record --seeds 1 --trials 1"),
    ("startup.py", f"{shlex.quote(str(ROOT))} --rounds 1 --commands 'import stormproof'"),
    ("training_loop.py", "--part step --workloads default --rounds 2 --epochs 2"),
    ("training_loop.py", "--part run --rounds 2 --epochs 1"),
]
"""Scripts and the arguments with which they take seconds."""


@pytest.mark.slow
@pytest.mark.parametrize(("script", "arguments"), REDUCED, ids=[f"{script} {words}" for script, words in REDUCED])
def test_a_benchmark_runs_and_prints_figures(script: str, arguments: str, tmp_path: Path):
    done = forked_command.run(
        shlex.split(arguments), cwd=tmp_path, env=os.environ, timeout=250, script=BENCHMARKS / script
    )
    assert done.returncode == 0, done.stderr
    assert any(character.isdigit() for character in done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 12), reason="sys.monitoring is new in Python 3.12")
def test_the_executed_lines_of_a_test_are_recorded(tmp_path: Path):
    test = "def test_it():\n    from stormproof.finding import Finding\n"
    (tmp_path / "test_it.py").write_text(test)
    records = tmp_path / "records"
    records.mkdir()
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(BENCHMARKS), os.environ.get("PYTHONPATH", "")]),
        "EXECUTED_LINES": str(records),
        "EXECUTED_LINES_ROOT": f"{ROOT}/",
    }
    command = [sys.executable, "-m", "pytest", "-p", "executed_lines", "-q", "test_it.py"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert any('"test_it.py::test_it"' in file.read_text() for file in records.iterdir())
