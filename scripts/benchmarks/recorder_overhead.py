"""Measures the CPU time per step of training programs with and without the recorder of ``stormproof certify``.

python scripts/benchmarks/recorder_overhead.py --rounds 5
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from stormproof.replay.ledger import BOOTSTRAP_FOLDER, EVERY_VARIABLE, FOLDER_VARIABLE, ROOT_VARIABLE

PROGRAM = """
import sys, time
import torch
from torch import nn

torch.set_num_threads(1)
torch.manual_seed(0)
name, steps = sys.argv[1], int(sys.argv[2])
if name == "mlp":
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    inputs = torch.randn(64, 32)
else:
    layer = nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True)
    model, inputs = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False), torch.randn(8, 64, 256)
optimizer = torch.optim.AdamW(model.parameters(), 1e-3)


def train_step():
    optimizer.zero_grad()
    model(inputs).square().mean().backward()
    optimizer.step()


for _ in range(12):  # the recorder always hashes the first 10 steps
    train_step()
started = time.process_time()
for _ in range(steps):
    train_step()
print((time.process_time() - started) / steps)
"""
PROGRAMS = {"mlp": 400, "transformer": 20}
"""Programs and the number of measured steps."""
VARIANTS = {"without recorder": 0, "each step": 1, "each 10th step": 10}
"""Variants and the interval of hashed steps."""


def seconds_per_step(name: str, steps: int, every: int) -> float:
    """Returns the CPU seconds per step of a program in its own process."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "train.py").write_text(PROGRAM)
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        if every:
            ledger = Path(folder, "ledger")
            ledger.mkdir()
            environment |= {
                "PYTHONPATH": str(BOOTSTRAP_FOLDER), FOLDER_VARIABLE: str(ledger), EVERY_VARIABLE: str(every),
                ROOT_VARIABLE: folder,
            }  # fmt: skip
        command = [sys.executable, "train.py", name, str(steps)]
        result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
        if every and not list(Path(folder, "ledger").iterdir()):
            raise RuntimeError("The recorder wrote no ledger.")
        return float(result.stdout)


def main() -> None:
    """Prints the median ratio of each variant to the program without the recorder, and its range."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    for name, steps in PROGRAMS.items():
        rounds = [
            {variant: seconds_per_step(name, steps, every) for variant, every in VARIANTS.items()}
            for _ in range(arguments.rounds)
        ]
        for variant in VARIANTS:
            ratios = [times[variant] / times["without recorder"] for times in rounds]
            median = statistics.median(times[variant] for times in rounds)
            print(
                f"{name:12} {variant:17} {1000 * median:8.2f} ms per step, ratio {statistics.median(ratios):.2f} "
                f"({min(ratios):.2f}, {max(ratios):.2f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
