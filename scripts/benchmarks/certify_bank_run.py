"""Certifies each script of the bank of resume faults, and counts how often the right component is named.

A script with a fault counts as right if most faults name the component or the variable in the index.
An exact script counts as right if no fault has a verdict other than exact.

    python scripts/benchmarks/certify_bank_run.py --part blind --python ../venv/bin/python
    python scripts/benchmarks/certify_bank_run.py images/digits_mlp.py
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BANK = Path(__file__).parent / "certify_bank"
WORDS = {
    "frozen": {"frozen"},
    "hyperparameters": {"optimizer", "scheduler"},
    "scheduler": {"scheduler"},
    "learning_rate": {"scheduler", "optimizer"},
    "scaler": {"scaler"},
    "parameters": {"parameters"},
    "optimizer": {"optimizer"},
    "buffers": {"buffers"},
    "averaged": {"averaged"},
    "data/count": {"accumulation", "data_position"},
    "data/indices": {"data_order", "sampler_epoch", "data_position"},
    "data/batches": {"data_order", "sampler_epoch", "data_position"},
    "gradients": {"accumulation"},
    "rng/generators/torch": {"data_order", "rng_torch"},
    "rng/generators/numpy": {"data_order", "rng_numpy"},
    "rng/generators/python": {"data_order", "rng_python"},
    "rng/workers": {"worker_seeds"},
    "rng/python": {"rng_python"},
    "rng/numpy": {"rng_numpy"},
    "rng/torch": {"rng_torch"},
    "variables": {"variable"},
    "length": {"variable"},
}
"""Components of the index that each component of a report may mean. Other components are never right."""


@dataclass(frozen=True)
class Judgment:
    """Result for one script.

    Attributes:
        named: Component of the most faults, ``exact``, or the error message.
        is_right: Whether it agrees with the index.
        faults: Number of injected faults.
        ratio: Duration of the certification divided by that of the command without a recorder.
    """

    named: str
    is_right: bool
    faults: int
    ratio: float


def named_component(report: dict[str, Any]) -> str:
    """Returns the component that most faults name, or ``exact``."""
    failed = [fault for fault in report["faults"] if not fault["safe"] and fault["verdict"] != "no fault"]
    if not failed:
        return "exact"
    return statistics.mode(fault["component"] or fault["verdict"] for fault in failed)


def meanings_of(named: str) -> set[str]:
    """Returns the components of the index that a component of a report may mean."""
    component = named.removeprefix("before/")
    return WORDS.get(component, WORDS.get(component.partition("/")[0], set()))


def certify(script: dict[str, Any], python: str, options: list[str]) -> Judgment:
    """Certifies one script in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        source = BANK / script["path"]
        shutil.copy(source, folder)
        command = [python, source.name]
        with tempfile.TemporaryDirectory() as other:  # the time without the recorder
            shutil.copy(source, other)
            started = time.monotonic()
            subprocess.run(command, cwd=other, check=True, capture_output=True)
            plain_seconds = time.monotonic() - started
        started = time.monotonic()
        result = subprocess.run(
            ["stormproof", "certify", *options, "--", *command], cwd=folder, capture_output=True, text=True, check=False
        )
        ratio = (time.monotonic() - started) / plain_seconds
        path = Path(folder, "certify", "report.json")
        if not path.exists():
            return Judgment(result.stderr.strip().splitlines()[-1], is_right=False, faults=0, ratio=ratio)
        report = json.loads(path.read_text())
    named = named_component(report)
    expected = script["component"]
    variable = script.get("variable")
    is_variable = variable is not None and named.startswith("variables/") and named.endswith(f".{variable}")
    is_right = named == "exact" if expected == "exact" else is_variable or expected in meanings_of(named)
    return Judgment(named, is_right, len(report["faults"]), ratio)


def main() -> int:
    """Prints a line for each script, then the totals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scripts", nargs="*", help="paths in the bank; by default all")
    parser.add_argument("--part", choices=["blind", "development", "held_out"])
    parser.add_argument("--python", default=sys.executable, help="Python with transformers and accelerate")
    parser.add_argument("--options", default="", help="options of stormproof certify, such as `--budget 60s`")
    arguments = parser.parse_args()
    index = tomllib.loads((BANK / "index.toml").read_text())["script"]
    chosen = [
        script
        for script in index
        if script["path"] in (arguments.scripts or [script["path"]])
        and script["part"] == (arguments.part or script["part"])
    ]
    results = dict[str, list[Judgment]]()
    for script in chosen:
        judgment = certify(script, arguments.python, arguments.options.split())
        kind = "exact" if script["component"] == "exact" else "faulty"
        results.setdefault(kind, []).append(judgment)
        mark = "right" if judgment.is_right else "WRONG"
        print(
            f"{mark}  {script['path']:40} {script['component']:14} named {judgment.named}, "
            f"{judgment.faults} faults, {judgment.ratio:.1f} times the run",
            flush=True,
        )
    for kind, judgments in results.items():
        right = sum(judgment.is_right for judgment in judgments)
        ratio = statistics.median(judgment.ratio for judgment in judgments)
        print(f"{kind}: {right} of {len(judgments)} right, median {ratio:.1f} times the run")
    return 0


if __name__ == "__main__":
    sys.exit(main())
