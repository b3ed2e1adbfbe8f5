"""``tune=lr`` and ``tune=batch_size``: measured, told as a table, kept, and as last line the override to use."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from omegaconf import DictConfig, OmegaConf

from stormproof.checkpoint import atomic_write
from stormproof_train.broken_links import reason
from stormproof_train.config.identity import RunSpec
from stormproof_train.config.plan import read_plan
from stormproof_train.console import print_table, say
from stormproof_train.data.spec import fingerprint_of, spec_of
from stormproof_train.errors import STORAGE_FAULTS, UserError
from stormproof_train.lightning_output import quiet_lightning
from stormproof_train.tuning.batch_size import BatchSize, find_batch_size
from stormproof_train.tuning.learning_rate import LearningRate, find_learning_rate
from stormproof_train.tuning.measuring_trainer import measuring_trainer


def tune(cfg: DictConfig) -> None:
    """Finds what ``cfg.tune`` names for the run that the rest describes, which is not begun.

    What was measured is kept in ``<runs_dir>/tune-<lr or batch_size>-<name>.yaml``, where the name is the run's.

    Args:
        cfg: a composed config whose ``tune`` is set.

    Raises:
        RunError: with the sentence for the user and the exit code.
    """
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    plan = read_plan(config)
    quiet_lightning()
    measuring_trainer(plan, folder=plan.runs_dir)  # says what is wrong with it, before the data are read
    pl.seed_everything(plan.seed, workers=True, verbose=False)
    data = plan.data.build(seed=plan.seed)
    spec = spec_of(data)
    loss = plan.loss_for(spec.task)
    name = RunSpec.of(plan.settings(loss, fingerprint_of(data))).name
    file = _room_for(Path(plan.runs_dir) / f"tune-{plan.tune}-{name}.yaml")
    say(f"tune={plan.tune}: {spec.task} on {plan.data.function.__name__}; nothing is kept of these trainings")
    if plan.tune == "lr":
        try:
            found = find_learning_rate(plan, data, spec, loss)
        except SystemExit as error:
            if isinstance(error.__context__, KeyboardInterrupt):  # Lightning's way to end by Ctrl-C
                raise KeyboardInterrupt from error
            raise
        override = _told_of_the_rate(found)
    else:
        found = find_batch_size(plan, config, data)
        override = _told_of_the_size(found)
    with atomic_write(file) as opened:
        kept = {"tune": plan.tune, "override": override, "measured": _measured(found)}
        opened.write(yaml.safe_dump(kept, sort_keys=False).encode())
    say(f"what was measured: {file}")
    say(override)


def _room_for(file: Path) -> Path:
    """The file, in a folder that is there."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in STORAGE_FAULTS:
            raise
        raise UserError(f"runs_dir={file.parent}: the folder cannot be made: {reason(file, error)}") from error
    return file


def _told_of_the_rate(found: LearningRate) -> str:
    rows = [
        (
            str(seed),
            "none" if each.suggested is None else f"{each.suggested:.2g}",
            "nowhere" if each.diverged is None else f"{each.diverged:.2g}",
        )
        for seed, each in found.readings.items()
    ]
    print_table("where the loss has fallen halfway", ("seed", "learning rate", "diverged at"), rows)
    suggested = [each.suggested for each in found.readings.values() if each.suggested is not None]
    say(
        f"the median of {len(suggested)} seeds, a factor of {max(suggested) / min(suggested):.1f} apart, and at most a "
        "tenth of what diverged; with a schedule it is the highest rate"
    )
    return f"optimizer.lr={found.rate:g}"


def _told_of_the_size(found: BatchSize) -> str:
    fastest = max(each.samples_per_second for each in found.measured)
    rows = [
        (
            str(each.batch_size),
            f"{each.samples_per_second:,.0f}",
            f"{each.samples_per_second / fastest:.0%}",
            f"{each.memory / 2**20:,.0f} MiB",
        )
        for each in found.measured
    ]
    print_table("how fast a batch is", ("batch size", "samples/s", "of the fastest", "peak memory"), rows)
    say(f"no larger batch was tried: {found.ended}")
    say("the smallest batch than which no larger one is over 10% faster; another wants another learning rate (tune=lr)")
    return f"data.batch_size={found.size}"


def _measured(found: LearningRate | BatchSize) -> list[dict[str, Any]]:
    if isinstance(found, LearningRate):
        return [{"seed": seed, **dataclasses.asdict(each)} for seed, each in found.readings.items()]
    return [dataclasses.asdict(each) for each in found.measured]
