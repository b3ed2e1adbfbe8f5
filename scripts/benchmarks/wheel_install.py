"""Smoke-tests the built wheel. Prints install time and installed size.

    pip install -e ".[dev]"
    python scripts/benchmarks/wheel_install.py [python3.11 python3.12 python3.13]

For each interpreter, it creates a virtual environment, installs ``stormproof[train]`` from the wheel, trains for one
epoch in an empty folder, rebuilds the report and runs ``stormproof verify``. Exits with an error if any command fails.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[2]


def build(folder: Path) -> Path:
    """Builds the wheel and returns its path."""
    _run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)], folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def check(python: str, wheel: Path) -> None:
    """Installs and tests the wheel with one interpreter, and prints the result."""
    with TemporaryDirectory() as folder:
        environment, work = Path(folder, "environment"), Path(folder, "work")
        work.mkdir()
        started = time.monotonic()
        _run([python, "-m", "venv", str(environment)], work)
        _run([str(environment / "bin/pip"), "install", "--quiet", f"stormproof[train] @ file://{wheel}"], work)
        seconds = time.monotonic() - started
        _run([str(environment / "bin/stormproof-train"), "activation=elu", "trainer.max_epochs=1", "name=first"], work)
        report = work / "runs/first/report.html"
        report.unlink()
        _run([str(environment / "bin/stormproof-train"), "report", "runs/first"], work)
        assert report.stat().st_size > 10_000, report
        _run([str(environment / "bin/stormproof"), "verify", "runs/first"], work)
        version = _run([str(environment / "bin/python"), "--version"], work).strip()
        size = int(_run(["du", "--summarize", "--block-size=1000000", str(environment)], work).split()[0])
        torch = _run([str(environment / "bin/python"), "-c", "import torch; print(torch.__version__)"], work).strip()
        print(
            f"{version}, torch {torch}: installed in {seconds:.0f} s, {size:,} MB; trained, reported, verified",
            flush=True,
        )


def _run(command: list[str], folder: Path) -> str:
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"{' '.join(command)}\n{result.stdout}{result.stderr}")
    return result.stdout


def main() -> None:
    with TemporaryDirectory() as folder:
        wheel = build(Path(folder))
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.2f} MB")
        for python in sys.argv[1:] or ["python3.11", "python3.12", "python3.13"]:
            check(python, wheel)


if __name__ == "__main__":
    main()
