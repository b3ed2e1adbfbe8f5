"""The processes that a launcher started."""

from __future__ import annotations

import os
from collections.abc import Mapping

from stormproof.distributed.rank import is_in_slurm_step


def launched(environ: Mapping[str, str] = os.environ) -> dict[str, int]:
    """Returns the Trainer's ``devices`` (processes per node) and ``num_nodes``, from torchrun or srun.

    Empty if neither started this process, for example in a SLURM job without ``srun`` or in its interactive shell.

    Args:
        environ: Environment variables.

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
