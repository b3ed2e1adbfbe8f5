import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_a_network_is_spread_part_by_part_and_computes_the_same():
    """torch keeps the process groups of its meshes, and their threads: a process that has had one forks no more."""
    cases = Path(__file__).with_name("fully_sharded_cases.py")
    pytest = [sys.executable, "-m", "pytest", "-q", "-n", "0", str(cases)]
    result = subprocess.run(pytest, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout
