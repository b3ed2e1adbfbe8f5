"""Certifies the same training run in several frameworks, each with its own checkpoints, and prints a table in Markdown.

The programs are in ``resume_programs``. Their argument is the number of DataLoader workers.

    python scripts/benchmarks/resume_scoreboard.py --python ../venv/bin/python
    python scripts/benchmarks/resume_scoreboard.py --python ../venv-composer/bin/python composer_trainer
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stormproof.replay.reports.component_names import describe_component

PROGRAMS = Path(__file__).parent / "resume_programs"
PACKAGES = {
    "stock_lightning": "pytorch-lightning",
    "hf_trainer": "transformers",
    "accelerate_states": "accelerate",
    "distributed_checkpoint": "torch",
    "composer_trainer": "mosaicml",
    "stormproof_in_lightning": "stormproof",
}
"""Package of the framework that each program tests."""


def certify(program: str, workers: int, python: str, options: Sequence[str]) -> dict[str, Any]:
    """Returns the JSON report for one program.

    Raises:
        SystemExit: If the program cannot be certified.
    """
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(PROGRAMS, folder, dirs_exist_ok=True)
        command = ["stormproof", "certify", *options, "--", python, f"{program}.py", str(workers)]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        report = Path(folder, "certify", "report.json")
        if not report.exists():
            sys.exit(f"{program} with {workers} workers: {result.stderr.strip()}")
        return json.loads(report.read_text())


def version_of(package: str, python: str) -> str:
    """Returns the version of a package in an environment."""
    code = f"import importlib.metadata; print(importlib.metadata.version({package!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def summarize(report: dict[str, Any]) -> tuple[str, str]:
    """Returns the share of exact resumes, and the counts of all other results."""
    results = Counter(_describe(fault) for fault in report["faults"] if fault["verdict"] != "no fault")
    total, exact = results.total(), results.pop("exact", 0)
    others = ", ".join(f"{result} ({count})" for result, count in results.most_common())
    return f"{exact} of {total}", others


def _describe(fault: dict[str, Any]) -> str:
    if fault["safe"] and fault["verdict"] != "exact":
        return "refused a truncated checkpoint"
    return describe_component(fault["component"]) if fault["component"] else fault["verdict"]


def main() -> int:
    """Prints a row for each program and number of workers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "programs", nargs="*", metavar="PROGRAM", choices=[*PACKAGES, []], help="by default all"
    )  # argparse checks the empty default, too
    parser.add_argument("--python", default=sys.executable, help="Python that has the framework")
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 2])
    parser.add_argument("--options", default="--max-faults 8 --budget 10m", help="options of stormproof certify")
    arguments = parser.parse_args()
    print("| program | version | workers | exact | first difference, or other result (faults) |\n|---|---|---|---|---|")
    for program in arguments.programs or PACKAGES:
        version = version_of(PACKAGES[program], arguments.python)
        for workers in arguments.workers:
            report = certify(program, workers, arguments.python, shlex.split(arguments.options))
            exact, others = summarize(report)
            print(f"| `{program}.py` | {version} | {workers} | {exact} | {others} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
