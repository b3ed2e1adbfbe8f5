"""Measures the cost of the application per training step and at start-up on the CPU, as ratios from the same run.

    python scripts/benchmarks/training_loop.py [--part step|run|startup|all] [--rounds 15] [--threads 1] [--epochs N]

Per step, with the same network, data, loss, optimizer and seed:

- raw: a PyTorch loop of forward pass, backward pass and optimizer step. Its validation computes loss and accuracy.
- bare: the application's LightningModule with its metrics and ``self.log`` calls, in a ``pl.Trainer`` without
  callbacks, checkpoints and logger, with the application's ``deterministic`` and ``log_every_n_steps``.
- ours: ``stormproof_train.main.run`` with its default callbacks and metrics.csv, ``logger=none``.
- no recovery: the same without CheckpointRecovery, and without DivergenceGuard and Preemption, which need it.
- none: the same with ``callbacks=none``.

Raw and bare use torch's DataLoader. The others use the same loader, made resumable.

An epoch lasts from its first training step to the first training step of the next epoch, including validation and
logging. The time of a variant in a round is its median epoch, which excludes bursts of other load. CPU time is the time
of the process.

A run is everything that ``stormproof_train.main.run`` does in this process with ``logger=none`` and otherwise default
settings: setup, training, validation, the final evaluation and the report. Ours and none are compared.

Start-up is the wall time of ``python train.py logger=none`` until the end of its first training step. It is divided by
the time of a process that only imports torch and pytorch_lightning.

The variants alternate in each round, in a different order each time. The first round is discarded. A ratio compares two
times of the same round. Prints the median over the rounds, the quartiles, the minimum and the maximum.

Targets, on wall time: ours / bare <= 1.03 per step, and start-up <= 1.15. A whole run has no target.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import io
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig

from stormproof_train.build_task import build_task
from stormproof_train.config.conf_dir import conf_dir
from stormproof_train.config.hydra_defaults import VERSION_BASE
from stormproof_train.config.overrides import normalize_overrides
from stormproof_train.config.plan import Plan, read_plan
from stormproof_train.data.spec import infer_spec
from stormproof_train.lightning_output import suppress_lightning_output
from stormproof_train.main import run
from stormproof_train.task import Task

PARTS = ("step", "run", "startup")
STEP_TARGET, STARTUP_TARGET = 1.03, 1.15


class Workload(NamedTuple):
    """Overrides of the default command, and the number of epochs."""

    overrides: list[str]
    epochs: int


WORKLOADS = {
    "default": Workload([], 30),
    "wide": Workload(["model.width=512", "model.depth=3", "data.batch_size=128"], 20),
}
"""MLPs on digits."""


class Times(NamedTuple):
    wall: float
    cpu: float


STARTS: list[Times] = []  # both clocks at the start of each training step


def mark_step() -> None:
    STARTS.append(Times(time.perf_counter(), time.process_time()))


class FirstStep(pl.Callback):
    """Prints the time at the end of the first training step and exits."""

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        print("at", time.time(), flush=True)
        os._exit(0)


def build(cfg: DictConfig) -> tuple[Plan, Task, Any]:
    plan = read_plan(cfg)
    pl.seed_everything(plan.seed, workers=True, verbose=False)
    data = plan.data.build(seed=plan.seed)
    spec = infer_spec(data)
    return plan, build_task(plan, data, spec, plan.bind_loss(spec.task)), data


def raw_loop(cfg: DictConfig) -> None:
    plan, task, data = build(cfg)
    network, loss = task.network, task.loss
    optimizer = plan.optimizer.build(params=list(network.parameters()))
    data.setup("fit")
    train, validation = data.train_dataloader().wrapped, data.val_dataloader()
    for _ in range(cfg.trainer.max_epochs):
        network.train()
        for inputs, target in train:
            mark_step()
            optimizer.zero_grad()
            loss(network(inputs), target).backward()
            optimizer.step()
        network.eval()
        with torch.no_grad():
            for inputs, target in validation:
                outputs = network(inputs)
                loss(outputs, target).item()
                (outputs.argmax(1) == target).sum().item()


def bare_lightning(cfg: DictConfig) -> None:
    _, task, data = build(cfg)
    shared_options = {
        name: cfg.trainer[name] for name in ("accelerator", "max_epochs", "deterministic", "log_every_n_steps")
    }
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(devices=1, **shared_options, **off)
    data.setup("fit")
    trainer.fit(task, data.train_dataloader().wrapped, data.val_dataloader())


def application(cfg: DictConfig) -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        cfg.runs_dir = folder
        run(cfg)


def without_recovery(cfg: DictConfig) -> None:
    cfg.callbacks.recovery = cfg.callbacks.divergence_guard = cfg.callbacks.preemption = None
    application(cfg)


def without_callbacks(cfg: DictConfig) -> None:
    cfg.callbacks = {}  # as ``callbacks=none``
    application(cfg)


VARIANTS: dict[str, Callable[[DictConfig], None]] = {
    "raw": raw_loop,
    "bare": bare_lightning,
    "ours": application,
    "no recovery": without_recovery,
    "none": without_callbacks,
}


def seconds_a_step(variant: str, cfg: DictConfig) -> Times:
    STARTS.clear()
    gc.collect()
    VARIANTS[variant](cfg.copy())
    steps = len(STARTS) // cfg.trainer.max_epochs
    epochs = [[end - start for start, end in itertools.pairwise(clock)] for clock in zip(*STARTS[::steps], strict=True)]
    return Times(*(statistics.median(epoch) / steps for epoch in epochs))


def in_turns(names: Sequence[str], measure: Callable[[str], Times], rounds: int) -> dict[str, list[Times]]:
    times: dict[str, list[Times]] = {name: [] for name in names}
    for index in range(rounds + 1):
        shift = index % len(names)
        for name in [*names[shift:], *names[:shift]]:
            times[name].append(measure(name))
    return {name: measured[1:] for name, measured in times.items()}


def show_ratios(above: str, below: str, times: dict[str, list[Times]], clock: str, target: float | None = None) -> None:
    ratios = [getattr(a, clock) / getattr(b, clock) for a, b in zip(times[above], times[below], strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    verdict = "" if target is None else f"  target {target}: {'reached' if median <= target else 'MISSED'}"
    spread = f"[{low:.3f}, {high:.3f}] ({min(ratios):.3f}, {max(ratios):.3f})"
    print(f"  {f'{above} / {below}, {clock}':<24} {median:.3f}  {spread}{verdict}")


def compose(overrides: Sequence[str], epochs: int | None) -> DictConfig:
    last = [] if epochs is None else [f"trainer.max_epochs={epochs}"]
    with hydra.initialize_config_dir(str(conf_dir()), **VERSION_BASE):
        return hydra.compose("config", normalize_overrides(["logger=none", "trainer=cpu", *overrides, *last]))


def step_part(rounds: int, workloads: Sequence[str], epochs: int | None) -> None:
    training_step = Task.training_step

    @functools.wraps(training_step)
    def marked(self: Task, batch: Any, batch_idx: int) -> torch.Tensor:
        mark_step()
        return training_step(self, batch, batch_idx)

    Task.training_step = marked  # for all variants but raw
    for name in workloads:
        workload = WORKLOADS[name]
        cfg = compose(workload.overrides, epochs or workload.epochs)
        times = in_turns(list(VARIANTS), functools.partial(seconds_a_step, cfg=cfg), rounds)
        settings = f"{name} ({' '.join(workload.overrides)}), {cfg.trainer.max_epochs} epochs, {rounds} rounds"
        print(f"\nper training step: {settings}")
        for variant, measured in times.items():
            wall, cpu = (statistics.median(clock) * 1e3 for clock in zip(*measured, strict=True))
            print(f"  {variant:<20} {wall:.3f} ms, {cpu:.3f} ms of CPU time")
        for clock, target in (("wall", STEP_TARGET), ("cpu", None)):
            show_ratios("ours", "bare", times, clock, target)
            for above, below in (
                ("bare", "raw"),
                ("ours", "raw"),
                ("no recovery", "bare"),
                ("ours", "none"),
                ("none", "bare"),
            ):
                show_ratios(above, below, times, clock)
    Task.training_step = training_step


def run_part(rounds: int, epochs: int | None) -> None:
    cfg = compose([], epochs)

    def measure(name: str) -> Times:
        gc.collect()
        start = Times(time.perf_counter(), time.process_time())
        VARIANTS[name](cfg.copy())
        return Times(time.perf_counter() - start.wall, time.process_time() - start.cpu)

    times = in_turns(["ours", "none"], measure, rounds)
    print(f"\nwhole run: digits, default MLP, {cfg.trainer.max_epochs} epochs, {rounds} rounds")
    for name, measured in times.items():
        wall, cpu = (statistics.median(clock) for clock in zip(*measured, strict=True))
        print(f"  {name:<20} {wall:.2f} s, {cpu:.2f} s of CPU time")
    for clock in Times._fields:
        show_ratios("ours", "none", times, clock)


def startup_part(rounds: int, threads: int) -> None:
    benchmark_folder = Path(__file__).resolve().parent
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(benchmark_folder)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # the first round, which is discarded, writes the bytecode
    first_step = f"callbacks.first_step._target_={Path(__file__).stem}.{FirstStep.__name__}"
    with tempfile.TemporaryDirectory() as folder:
        commands = {
            "ours": [str(benchmark_folder.parents[1] / "train.py"), "logger=none", "trainer=cpu", first_step],
            "imports": ["-c", "import time, torch, pytorch_lightning; print('at', time.time())"],
        }

        def measure(name: str) -> Times:
            command = [*commands[name], *([f"runs_dir={tempfile.mkdtemp(dir=folder)}"] if name == "ours" else [])]
            start = time.time()
            output = subprocess.check_output([sys.executable, *command], env=environment, cwd=folder, text=True)
            at = next(line for line in output.splitlines() if line.startswith("at "))
            return Times(wall=float(at.split()[1]) - start, cpu=float("nan"))

        times = in_turns(list(commands), measure, rounds)
    print(f"\nstart-up, to the end of the first training step: digits, default MLP, {rounds} rounds")
    for name, measured in times.items():
        print(f"  {name:<20} {statistics.median(seconds.wall for seconds in measured):.2f} s")
    show_ratios("ours", "imports", times, "wall", STARTUP_TARGET)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--part", choices=(*PARTS, "all"), default="all")
    parser.add_argument("--rounds", type=int, default=15, help="at least 2")
    parser.add_argument("--threads", type=int, default=1, help="of torch's operations")
    parser.add_argument("--workloads", choices=WORKLOADS, nargs="+", default=list(WORKLOADS), help="of the part step")
    parser.add_argument(
        "--epochs", type=int, help="at least 2; instead of the usual numbers, in the parts step and run"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    suppress_lightning_output()
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "pytorch-lightning"))
    print(f"{libraries}, {os.cpu_count()} cores, {arguments.threads} used, CPU only")
    print("ratios: median over the rounds [quartiles] (minimum, maximum); bare Lightning has logger=False")
    parts = PARTS if arguments.part == "all" else (arguments.part,)
    if "step" in parts:
        step_part(arguments.rounds, arguments.workloads, arguments.epochs)
    if "run" in parts:
        run_part(arguments.rounds, arguments.epochs)
    if "startup" in parts:
        startup_part(arguments.rounds, arguments.threads)


if __name__ == "__main__":
    main()
