"""Measures the time in the hooks of TrainingHealth, GradientNormMonitor and DeadNeuronDetector.

    python scripts/benchmarks/hook_times.py [--workload mlp|cnn|transformer] [--steps 600]

Whole steps are too noisy to measure this. Prints the median time per step in the hooks of each callback for three kinds
of steps: most steps, steps that measure gradients and units, and inspected steps. Lightning's own overhead to call
hooks is not included.
"""

from __future__ import annotations

import argparse
import functools
import logging
import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from monitoring import Task
from monitoring_variants import WORKLOADS, NullLogger

from stormproof import DeadNeuronDetector, GradientNormMonitor, TrainingHealth

FIRST = 100
KINDS: dict[str, Callable[[int], bool]] = {
    "most": lambda step: step % 10 != 9,
    "measured": lambda step: step % 10 == 9 and step % 100 != 99,
    "inspected": lambda step: step % 100 == 99,
}


class HookTimer:
    """Sums the time of hooks by callback and step. Also serves as the loader, which provides the step."""

    def __init__(self, batches: list[Any], steps: int) -> None:
        self.batches, self.steps, self.step = batches, steps, 0
        self.seconds: dict[tuple[str, int], float] = defaultdict(float)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Any]:
        for step in range(self.steps):
            self.step = step
            yield self.batches[step % len(self.batches)]

    def time_hooks(self, callback: pl.Callback) -> pl.Callback:
        for name in (attribute for attribute in dir(pl.Callback) if attribute.startswith("on_")):
            if getattr(type(callback), name) is not getattr(pl.Callback, name):
                setattr(callback, name, self._timed(getattr(callback, name), type(callback).__name__))
        return callback

    def _timed(self, hook: Callable[..., None], name: str) -> Callable[..., None]:
        @functools.wraps(hook)
        def timed(*args: Any, **kwargs: Any) -> None:
            start = time.perf_counter()
            hook(*args, **kwargs)
            self.seconds[name, self.step] += time.perf_counter() - start

        return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--workload", choices=WORKLOADS, default="mlp")
    parser.add_argument("--steps", type=int, default=600, help="at least 200; the first 100 are not measured")
    arguments = parser.parse_args()
    workload, steps = WORKLOADS[arguments.workload], arguments.steps
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = (workload.batch_size, 1, 28, 28)
    clock = HookTimer([(torch.randn(shape), torch.randint(10, shape[:1])) for _ in range(20)], steps)
    callbacks = [
        clock.time_hooks(callback) for callback in (TrainingHealth(), GradientNormMonitor(), DeadNeuronDetector())
    ]
    off = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        log_every_n_steps=10,
        logger=NullLogger(),
        callbacks=callbacks,
        **off,
    )
    start = time.perf_counter()
    trainer.fit(Task(workload), clock)
    print(f"step: {(time.perf_counter() - start) / steps * 1e3:.1f} ms")
    for name in (type(callback).__name__ for callback in callbacks):
        for kind, chosen in KINDS.items():
            seconds = [clock.seconds[name, step] for step in range(FIRST, steps) if chosen(step)]
            print(f"{name:<20} {kind:<10} {statistics.median(seconds) * 1e3:.3f} ms")


if __name__ == "__main__":
    main()
