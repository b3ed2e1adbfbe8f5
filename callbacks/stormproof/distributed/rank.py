"""Which rank this process is: asked here, nowhere else."""

from __future__ import annotations

import os
from collections.abc import Mapping


def global_rank(environ: Mapping[str, str] = os.environ) -> int:
    """The global rank of this process, known before any process group exists.

    It is read from what the launcher set: ``RANK`` (torchrun), ``SLURM_PROCID`` (inside a step that ``srun`` started),
    or ``NODE_RANK`` and ``LOCAL_RANK`` (Lightning's launcher, where rank 0 means first on the first node). A process
    that no launcher started is rank 0.

    Args:
        environ: the environment to read.

    Example:
        >>> global_rank({"RANK": "3", "LOCAL_RANK": "1"})
        3
        >>> global_rank({})
        0
    """
    if "RANK" in environ:
        return int(environ["RANK"])
    if is_in_slurm_step(environ):
        return int(environ["SLURM_PROCID"])
    return int(environ.get("NODE_RANK", "0")) + int(environ.get("LOCAL_RANK", "0"))


def is_in_slurm_step(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether ``srun`` started this process.

    In an interactive allocation SLURM_PROCID is set too, and no step runs: Lightning asks for the same two names.

    Example:
        >>> is_in_slurm_step({"SLURM_PROCID": "0", "SLURM_JOB_NAME": "interactive"})
        False
    """
    return "SLURM_PROCID" in environ and environ.get("SLURM_JOB_NAME") not in {"bash", "interactive"}


def is_launched(environ: Mapping[str, str] = os.environ) -> bool:
    """Returns whether a launcher started this process, so that other ranks may run on this node.

    Returns False for rank 0 of Lightning's own launcher until it has started the other ranks.

    Example:
        >>> is_launched({"LOCAL_RANK": "1"}), is_launched({})
        (True, False)
    """
    return "RANK" in environ or "LOCAL_RANK" in environ or is_in_slurm_step(environ)


def is_started_by_rank_zero(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is a further rank that rank 0 itself started, by Lightning's launcher.

    Rank 0 ends such a process, and is killed by that launcher if the process ends by itself with an error.

    Example:
        >>> is_started_by_rank_zero({"LOCAL_RANK": "1"})
        True
        >>> is_started_by_rank_zero({"LOCAL_RANK": "1", "RANK": "1"})
        False
    """
    has_external_launcher = "RANK" in environ or is_in_slurm_step(environ)
    return not has_external_launcher and int(environ.get("LOCAL_RANK", "0")) > 0


def is_rank_zero() -> bool:
    """Whether this process is the one that writes files and speaks to the console."""
    return global_rank() == 0
