"""Compares the goodput of Stormproof and stock Lightning for different numbers of GPUs.

    python scripts/simulate_goodput.py [--stall 0.18] [--write 2.2] [--stock 2.2] [--detect 28] [--restart 12]
    python scripts/simulate_goodput.py --drill 10 [--between-failures 40]

The first command prints a table of simulated values and the closed form (``goodput.py``). By default, the times are
from this project's records: a state of 604 MB on two cores. Replace them with your own. Stock Lightning waits until a
checkpoint is written. The table shows it with its best interval and with hourly checkpoints.

The second command kills a training run at random times and restarts it immediately. It prints the measured goodput and
the goodput simulated with the times that were measured in this run.
"""

from __future__ import annotations

import argparse
import math
import random
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from goodput import Costs, compute_optimal_interval, expected_goodput, mean_time_between_failures, simulate_goodput

from stormproof.checkpoint.progress_file import PROGRESS_FILE_NAME, read_progress
from stormproof.checkpoint.schedule import compute_optimal_interval as dalys_interval
from stormproof_train.run.metrics_rows import read_metrics

GPUS = (8, 64, 512, 1024, 4096, 16_384, 65_536)
FAILURES = 20_000
CHECKPOINT_INTERVAL, STEP = 50, 0.02  # of the drill: steps between two checkpoints; seconds added to each step


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "--stall", type=float, default=0.18, help="seconds that Stormproof's checkpoints delay training"
    )
    parser.add_argument("--write", type=float, default=2.2, help="seconds of the write in the background")
    parser.add_argument(
        "--stock", type=float, default=2.2, help="seconds that stock Lightning's checkpoints delay training"
    )
    parser.add_argument("--detect", type=float, default=28.0, help="seconds from a failure to its detection")
    parser.add_argument("--restart", type=float, default=12.0, help="seconds from the detection until training resumes")
    parser.add_argument("--drill", type=int, help="number of times to kill a real training run")
    parser.add_argument("--between-failures", type=float, default=40.0, help="mean seconds between kills of the drill")
    arguments = parser.parse_args()
    if arguments.drill:
        _drill(arguments.drill, arguments.between_failures)
        return
    our_costs = Costs(arguments.stall, arguments.write, arguments.detect, arguments.restart)
    stock = Costs(arguments.stock, 0.0, arguments.detect, arguments.restart)
    print(
        "| GPUs | between failures | our interval | goodput | closed form | stock interval | goodput | stock hourly |"
    )
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for gpus in GPUS:
        mean = mean_time_between_failures(gpus)
        interval, stock_interval = compute_optimal_interval(our_costs, mean), compute_optimal_interval(stock, mean)
        shares = (
            simulate_goodput(our_costs, interval, mean, FAILURES), expected_goodput(our_costs, interval, mean),
            simulate_goodput(stock, stock_interval, mean, FAILURES), simulate_goodput(stock, 3600.0, mean, FAILURES),
        )  # fmt: skip
        ours, form, best, hourly = (f"{100 * share:.2f}%" for share in shares)
        times = (f"{mean / 3600:.2f} h", f"{interval:.0f} s", ours, form, f"{stock_interval:.0f} s", best, hourly)
        print(f"| {gpus:,} | {' | '.join(times)} |")
    mean = mean_time_between_failures(1024)
    young = math.sqrt(2 * stock.stall * mean)
    print(
        f"\nAt 1,024 GPUs stock Lightning's best interval is {compute_optimal_interval(stock, mean):.1f} s by search, "
        f"{young:.1f} s by Young's formula, {dalys_interval(stock.stall, mean):.1f} s by Daly's."
    )


def _drill(kills: int, mean: float) -> None:
    """Kills a training run at exponentially distributed times and compares the goodput with the simulation."""
    generator = random.Random(0)
    with TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "mine.py").write_text(
            "import time\nfrom pytorch_lightning import Callback\n\n\nclass Slow(Callback):\n"
            f"    def on_train_batch_start(self, *args):\n        time.sleep({STEP})\n"
        )
        command = [
            sys.executable, str(Path(__file__).resolve().parents[1] / "train.py"), "name=run", "logger=none",
            "trainer.accelerator=cpu", "trainer.max_epochs=1000000",
            f"callbacks.recovery.every_n_train_steps={CHECKPOINT_INTERVAL}",
            "callbacks.slow._target_=mine.Slow", "max_restarts_without_progress=null",
            "callbacks.divergence_guard=null",  # Adam causes loss spikes long after the data is fitted
        ]  # fmt: skip
        start = time.monotonic()
        for _ in range(kills):
            life = generator.expovariate(1 / mean)
            with (root / "output.txt").open("ab") as output:
                process = subprocess.Popen(command, cwd=root, stdout=output, stderr=output)
                try:
                    code = process.wait(life)
                    sys.exit(
                        f"The run ended with {code} before it was killed: {(root / 'output.txt').read_text()[-2000:]}"
                    )
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
        wall = time.monotonic() - start
        run = root / "runs" / "run"
        _compare(run, kills, wall, mean)


def _compare(run: Path, kills: int, wall: float, mean: float) -> None:
    logged = {name: [value for _, value in rows] for name, rows in read_metrics(run / "metrics.csv").items()}
    restarts = logged.get("recovery/seconds", [])
    stalls = logged.get("checkpoint/stall_seconds", [])
    batches = logged.get("time/batch_seconds", [])
    reached = read_progress(run / "checkpoints" / PROGRESS_FILE_NAME)
    if not restarts or not stalls or not batches or reached is None:
        sys.exit("Too few restarts reached a checkpoint. Increase --between-failures.")
    step = statistics.median(batches)
    steps = reached.step // CHECKPOINT_INTERVAL * CHECKPOINT_INTERVAL  # steps that a checkpoint contains
    costs = Costs(statistics.median(stalls), 0.0, 0.0, statistics.median(restarts))
    simulated = [simulate_goodput(costs, CHECKPOINT_INTERVAL * step, mean, kills, seed) for seed in range(1000)]
    low, high = sorted(simulated)[25], sorted(simulated)[974]
    print(
        f"{kills} kills in {wall:.0f} s, {steps} steps of {1000 * step:.1f} ms, stall {1000 * costs.stall:.0f} ms, "
        f"restart {costs.restart:.1f} s\n"
        f"goodput: measured {100 * steps * step / wall:.1f}%, simulated {100 * statistics.fmean(simulated):.1f}% "
        f"(95% of simulations from {100 * low:.1f} to {100 * high:.1f}%)"
    )


if __name__ == "__main__":
    main()
