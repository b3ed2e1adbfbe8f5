"""The processes that a launcher started, and whether the Trainer is for as many."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

import psutil
import pytorch_lightning as pl

from stormproof_train.errors import UserError
from stormproof_train.targets import Target


def as_launched(trainer: Target, environ: Mapping[str, str] = os.environ) -> Target:
    """The Trainer with as many processes as the launcher started, where it leaves their number open (``auto``).

    Raises:
        UserError: if it is for another number.
    """
    started = launched(environ)
    devices, nodes = trainer.given.get("devices", 1), trainer.given.get("num_nodes", 1)
    if not started:
        return trainer
    if devices == "auto":
        return replace(trainer, given={**trainer.given, **started})
    count = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdigit() else 0
    if not count:  # all, or a list in words: Lightning's to read
        return trainer
    if (count, nodes) != (started["devices"], started["num_nodes"]):
        raise UserError(
            f"the launcher started {started['devices']} on each of {started['num_nodes']} nodes, and the Trainer is "
            f"for trainer.devices={devices} and trainer.num_nodes={nodes}: trainer=ddp takes the launcher's numbers"
        )
    return trainer


def launched(environ: Mapping[str, str] = os.environ) -> dict[str, int]:
    """The Trainer's ``devices`` (processes of each node) and ``num_nodes``, as torchrun or srun counted them.

    Empty where neither started this process: a SLURM job without ``srun``, and an interactive shell in one, are alone.

    Args:
        environ: the environment to read.

    Example:
        >>> launched({"RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"})
        {'devices': 2, 'num_nodes': 2}
        >>> launched({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_NNODES": "2"})
        {'devices': 2, 'num_nodes': 2}
        >>> launched({})
        {}
    """
    if {"RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"} <= environ.keys():
        each = int(environ["LOCAL_WORLD_SIZE"])
        return {"devices": each, "num_nodes": int(environ["WORLD_SIZE"]) // each}
    in_step = "SLURM_PROCID" in environ and environ.get("SLURM_JOB_NAME") not in {"bash", "interactive"}
    if in_step and {"SLURM_NTASKS", "SLURM_NNODES"} <= environ.keys():
        nodes = int(environ["SLURM_NNODES"])
        return {"devices": int(environ["SLURM_NTASKS"]) // nodes, "num_nodes": nodes}
    return {}


def stop_torchruns_agent() -> None:
    """Ends the torchrun that started this process, which else starts it again, whatever its exit code says."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    with suppress(psutil.Error):
        agent = psutil.Process().parent()
        if agent is not None and any("torchrun" in word or "torch.distributed" in word for word in agent.cmdline()):
            agent.terminate()


def accumulation(given: int, ranks: int, first: tuple[int, int] | None, batch_size: int | None) -> int:
    """The batches of a step on each rank, where a run goes on with another number of ranks.

    The batch of the whole job stays. Fewer ranks take more batches for a step, so that no forward pass has more samples
    than it had at first: as many fit into memory.

    Args:
        given: as the config has it.
        ranks: of this job.
        first: ranks, and batches of a step on each, of the run's first attempt; None where there was none.
        batch_size: samples of a step, over all ranks; None where nobody says.

    Example:
        >>> accumulation(given=1, ranks=2, first=(8, 1), batch_size=64)
        4
        >>> accumulation(given=1, ranks=16, first=(8, 1), batch_size=64)
        1
    """
    if first is None or first[0] == ranks:
        return given
    parts = first[0] * first[1]
    if batch_size is None or batch_size % ranks:
        return given if parts % ranks else parts // ranks
    most = batch_size // parts
    each = batch_size // ranks
    return next(count for count in range(1, each + 1) if each % count == 0 and each // count <= most)


def share_steps(trainer: pl.Trainer, first: tuple[int, int] | None, batch_size: int | None) -> None:
    """Sets how many batches a step has, and with it what the Trainer counts in batches.

    Args:
        trainer: as it was built.
        first: ranks, and batches of a step on each, of the run's first attempt; None where there was none.
        batch_size: samples of a step, over all ranks; None where nobody says.

    Raises:
        UserError: if a limit in batches is no whole number of them any more.
    """
    callbacks: list[pl.Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue] (set in __init__)
    if any(hasattr(callback, "get_accumulate_grad_batches") for callback in callbacks):
        return  # it decides
    given = trainer.accumulate_grad_batches
    accumulated = accumulation(given, trainer.world_size, first, batch_size)
    trainer.accumulate_grad_batches = accumulated
    for name in ("limit_train_batches", "val_check_interval"):
        limit = getattr(trainer, name)
        if isinstance(limit, int) and accumulated != given:
            batches, over = divmod(limit * accumulated, given)
            if over:
                raise UserError(
                    f"trainer.{name}={limit}, in batches of {given} a step, is no whole number of batches for "
                    f"{trainer.world_size} ranks, which take {accumulated} a step: start as many ranks as before"
                )
            setattr(trainer, name, batches)


def shares_of(trainer: pl.Trainer, batch_size: int | None) -> str:
    """How a job's ranks share its work, once its training begins.

    Args:
        trainer: at its first batch.
        batch_size: samples of an optimizer step, over all ranks; None where nobody says.
    """
    ranks, accumulated = trainer.world_size, trainer.accumulate_grad_batches
    parts = f"{ranks} rank{'s' * (ranks > 1)} x {accumulated} batch{'es' * (accumulated > 1)} a step"
    if batch_size is not None:
        parts += f" x {batch_size // (ranks * accumulated)} samples = {batch_size}"
    steps = (
        -(-int(trainer.num_training_batches) // accumulated) if trainer.num_training_batches < float("inf") else None
    )
    each = "" if steps is None else f"; {steps:,} steps an epoch, {trainer.estimated_stepping_batches:,} in all"
    return f"{parts}{each}; the learning rate is as given, not scaled"
