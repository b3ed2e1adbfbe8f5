"""Implements ``tune=lr`` and ``tune=batch_size``: measures, prints a table, and prints the override to use."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from omegaconf import DictConfig, OmegaConf

from stormproof.checkpoint import atomic_write
from stormproof.gradients.noise_scale import batch_size_advice
from stormproof_train.config.identity import RunSpec
from stormproof_train.config.plan import read_plan
from stormproof_train.console import print_line, print_table
from stormproof_train.data.spec import get_fingerprint, infer_spec
from stormproof_train.lightning_output import suppress_lightning_output
from stormproof_train.path_errors import create_folders
from stormproof_train.tuning.batch_size import BatchSize, NoiseMeasurement, find_batch_size
from stormproof_train.tuning.learning_rate import LearningRate, find_learning_rate
from stormproof_train.tuning.measuring_trainer import build_measuring_trainer


def tune(cfg: DictConfig) -> None:
    """Finds the learning rate or batch size for the run that ``cfg`` describes, without starting the run.

    The measurements are saved in ``<runs_dir>/tune-<lr or batch_size>-<name>.yaml`` with the name of the run.
    """
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    plan = read_plan(config)
    suppress_lightning_output()
    build_measuring_trainer(plan, folder=plan.runs_dir)  # validates the trainer before the data is read
    pl.seed_everything(plan.seed, workers=True, verbose=False)
    data = plan.data.build(seed=plan.seed)
    spec = infer_spec(data)
    loss = plan.bind_loss(spec.task)
    name = RunSpec.from_settings(plan.settings(loss, get_fingerprint(data))).name
    file = Path(plan.runs_dir) / f"tune-{plan.tune}-{name}.yaml"
    create_folders(f"runs_dir={file.parent}: the folder cannot be created", file.parent)
    print_line(f"tune={plan.tune}: {spec.task} on {plan.data.function.__name__}; the trained networks are discarded")
    if plan.tune == "lr":
        try:
            result = find_learning_rate(plan, data, spec, loss)
        except SystemExit as error:
            if isinstance(error.__context__, KeyboardInterrupt):  # Lightning exits this way after Ctrl-C
                raise KeyboardInterrupt from error
            raise
        override = _print_learning_rate(result)
    else:
        result = find_batch_size(plan, config, data)
        override = _print_batch_size(result)
    with atomic_write(file) as stream:
        record = {"tune": plan.tune, "override": override, "measured": _measurement_records(result)}
        if isinstance(result, BatchSize) and isinstance(result.noise, NoiseMeasurement):
            record["noise"] = dataclasses.asdict(result.noise)
        stream.write(yaml.safe_dump(record, sort_keys=False).encode())
    print_line(f"measurements: {file}")
    print_line(override)


def _print_learning_rate(result: LearningRate) -> str:
    rows = [
        (
            str(seed),
            "none" if reading.suggested is None else f"{reading.suggested:.2g}",
            "never" if reading.diverged is None else f"{reading.diverged:.2g}",
        )
        for seed, reading in result.readings.items()
    ]
    print_table("at half the loss decrease", ("seed", "learning rate", "diverged at"), rows)
    suggestions = [reading.suggested for reading in result.readings.values() if reading.suggested is not None]
    print_line(
        f"the median of {len(suggestions)} seeds, a factor of {max(suggestions) / min(suggestions):.1f} apart, "
        "and at most a tenth of the rate that diverged; with a schedule it is the highest rate"
    )
    return f"optimizer.lr={result.rate:g}"


def _print_batch_size(result: BatchSize) -> str:
    max_throughput = max(measurement.samples_per_second for measurement in result.measurements)
    rows = [
        (
            str(measurement.batch_size),
            f"{measurement.samples_per_second:,.0f}",
            f"{measurement.samples_per_second / max_throughput:.0%}",
            f"{measurement.memory / 2**20:,.0f} MiB",
        )
        for measurement in result.measurements
    ]
    print_table("throughput by batch size", ("batch size", "samples/s", "of the fastest", "peak memory"), rows)
    print_line(f"no larger batch was tried: {result.stop_reason}")
    print_line(
        "the smallest batch size within 10% of the throughput of larger ones; tune the learning rate again (tune=lr)"
    )
    _print_noise(result.noise)
    return f"data.batch_size={result.size}"


def _print_noise(noise: NoiseMeasurement | str) -> None:
    if isinstance(noise, str):
        print_line(f"the noise scale of the gradient is unknown: {noise}")
        return
    after = f"after {noise.steps} steps with batches of {noise.batch_size}"
    if math.isinf(noise.noise_scale):
        print_line(f"the gradient is mostly noise {after}: the noise scale is too large to estimate")
    else:
        print_line(
            f"the gradient noise scale is {noise.noise_scale:,.0f} samples {after}; it usually grows during training"
        )
    print_line(
        batch_size_advice(noise.noise_scale, noise.batch_size)
        or "the batch size is within a factor of 10 of the noise scale"
    )


def _measurement_records(result: LearningRate | BatchSize) -> list[dict[str, Any]]:
    if isinstance(result, LearningRate):
        return [{"seed": seed, **dataclasses.asdict(measurement)} for seed, measurement in result.readings.items()]
    return [dataclasses.asdict(measurement) for measurement in result.measurements]
