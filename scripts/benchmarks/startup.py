"""Compares the start-up time and the default command of this checkout with another one.

    pip install -e ".[dev]"
    python scripts/benchmarks/startup.py CHECKOUT [--rounds 5] [--commands "import stormproof"]

Both checkouts run in turn, each in a new folder. Prints medians in seconds, and the median and range of the ratios.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

HERE = Path(__file__).resolve().parents[2]
COMMANDS = {
    "import stormproof": ["-c", "import stormproof"],
    "import CheckpointRecovery": ["-c", "from stormproof import CheckpointRecovery"],
    "train.py --help": ["{tree}/train.py", "--help"],
    "train.py activaton=elu": ["{tree}/train.py", "activaton=elu"],
    "train.py report --help": ["{tree}/train.py", "report", "--help"],
    "train.py search --help": ["{tree}/train.py", "search", "--help"],
    "train.py evaluate --help": ["{tree}/train.py", "evaluate", "--help"],
    "train.py activation=elu": ["{tree}/train.py", "activation=elu"],
}


def seconds_of(tree: Path, command: list[str]) -> float:
    """Returns how long a command takes with the sources of a checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"PYTHONPATH": f"{tree / 'src'}{os.pathsep}{tree / 'callbacks'}"}
    with TemporaryDirectory() as folder:
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, *(part.format(tree=tree) for part in command)],
            cwd=folder, env=environment, check="activaton=elu" not in command, capture_output=True,
        )  # fmt: skip
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="the other checkout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--commands", choices=COMMANDS, nargs="+", default=list(COMMANDS))
    args = parser.parse_args()
    trees = (args.checkout.resolve(), HERE)
    for name in args.commands:
        command = COMMANDS[name]
        for tree in trees:
            seconds_of(tree, command)  # writes the bytecode
        rounds = [[seconds_of(tree, command) for tree in trees] for _ in range(args.rounds)]
        baseline, current = map(median, zip(*rounds, strict=True))
        ratios = [after / before for before, after in rounds]
        print(
            f"{name}: {baseline:.3f} s, {current:.3f} s, ratio {median(ratios):.2f} ({min(ratios):.2f} to "
            f"{max(ratios):.2f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
