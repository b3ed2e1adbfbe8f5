"""The processes that a launcher started, and whether the Trainer is for as many."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

from stormproof.distributed.rank import is_in_slurm_step
from stormproof_train.config.signature_binding import Target
from stormproof_train.errors import UserError


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
    if is_in_slurm_step(environ) and {"SLURM_NTASKS", "SLURM_NNODES"} <= environ.keys():
        nodes = int(environ["SLURM_NNODES"])
        return {"devices": int(environ["SLURM_NTASKS"]) // nodes, "num_nodes": nodes}
    return {}
