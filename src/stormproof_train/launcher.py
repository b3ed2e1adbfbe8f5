"""Detects the processes that a launcher started."""

from __future__ import annotations

import os
from collections.abc import Mapping

from stormproof.distributed.rank import is_in_slurm_step


def detect_launcher(environ: Mapping[str, str] = os.environ) -> dict[str, int]:
    """Returns the Trainer's ``devices`` (processes per node) and ``num_nodes``, from torchrun or srun.

    Empty if neither started this process, for example in a SLURM job without ``srun`` or in its interactive shell.

    Example:
        >>> detect_launcher({"RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"})
        {'devices': 2, 'num_nodes': 2}
        >>> detect_launcher({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_NNODES": "2"})
        {'devices': 2, 'num_nodes': 2}
        >>> detect_launcher({})
        {}
    """
    if {"RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"} <= environ.keys():
        local_world_size = int(environ["LOCAL_WORLD_SIZE"])
        return {"devices": local_world_size, "num_nodes": int(environ["WORLD_SIZE"]) // local_world_size}
    if is_in_slurm_step(environ) and {"SLURM_NTASKS", "SLURM_NNODES"} <= environ.keys():
        num_nodes = int(environ["SLURM_NNODES"])
        return {"devices": int(environ["SLURM_NTASKS"]) // num_nodes, "num_nodes": num_nodes}
    return {}
