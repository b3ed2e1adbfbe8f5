"""Determines the rank of this process from the environment. No other module reads these variables."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping


def global_rank(environ: Mapping[str, str] = os.environ) -> int:
    """Returns the global rank of this process, also before a process group exists.

    Reads the variables of the launcher: ``RANK`` (torchrun), ``SLURM_PROCID`` (in a step that ``srun`` started), or
    ``NODE_RANK`` and ``LOCAL_RANK`` (Lightning's launcher). For Lightning's launcher, the result is only correct for
    rank 0. A process that no launcher started is rank 0.

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


def local_rank(environ: Mapping[str, str] = os.environ) -> int:
    """Returns the rank of this process among those of its node. 0 if no launcher started it.

    Example:
        >>> local_rank({"LOCAL_RANK": "1"}), local_rank({})
        (1, 0)
    """
    return int(environ.get("LOCAL_RANK", environ.get("SLURM_LOCALID", "0")))


def rank_zero_address(environ: Mapping[str, str] = os.environ) -> str:
    """Returns the address of rank 0: ``MASTER_ADDR``, which torch also reads, or the host name. Call it on rank 0.

    Example:
        >>> rank_zero_address({"MASTER_ADDR": "node-7"})
        'node-7'
    """
    return environ.get("MASTER_ADDR") or socket.gethostname()


def own_address(environ: Mapping[str, str] = os.environ) -> str:
    """Returns an address of this process that the other ranks can reach.

    On ranks other than 0, this is the address from which packets to rank 0 are sent.

    Raises:
        OSError: If rank 0 has no IPv4 address, or there is no route to it.

    Example:
        >>> own_address({"RANK": "1", "MASTER_ADDR": "127.0.0.1"})
        '127.0.0.1'
    """
    host = rank_zero_address(environ)
    if global_rank(environ) == 0:
        return host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # sends no packet
        return str(probe.getsockname()[0])


def is_in_slurm_step(environ: Mapping[str, str] = os.environ) -> bool:
    """Returns whether ``srun`` started this process.

    An interactive allocation sets ``SLURM_PROCID``, too, but runs no step. Lightning detects it by the same job names.

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
    """Returns whether Lightning's launcher on rank 0 started this process.

    Rank 0 terminates such a process. If the process ends with an error, the launcher kills rank 0.

    Example:
        >>> is_started_by_rank_zero({"LOCAL_RANK": "1"})
        True
        >>> is_started_by_rank_zero({"LOCAL_RANK": "1", "RANK": "1"})
        False
    """
    has_external_launcher = "RANK" in environ or is_in_slurm_step(environ)
    return not has_external_launcher and int(environ.get("LOCAL_RANK", "0")) > 0


def is_rank_zero() -> bool:
    """Returns whether this process is rank 0, which writes files and prints to the console."""
    return global_rank() == 0
