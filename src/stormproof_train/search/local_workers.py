"""Starts the workers of this machine and divides its resources among them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Self

import torch

from stormproof_train.console import print_line

HELPER_VARIABLE = "STORMPROOF_SEARCH_HELPS"
"""Environment variable of workers that another worker has started. Only that one prints the result."""


class LocalWorkers:
    """Starts the other workers of this machine, and divides its cores and GPUs among all.

    Each worker is a process with the same command. If the first worker ends, the others continue.

    Args:
        arguments: Arguments after ``search``.
        num_workers: Number of workers, including this process.
    """

    def __init__(self, arguments: Sequence[str], num_workers: int) -> None:
        self._arguments, self._num_workers = arguments, num_workers
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        """Starts the other workers."""
        if self._num_workers > 1:
            environments = [build_worker_environment(index, self._num_workers) for index in range(self._num_workers)]
            command = [sys.executable, "-m", "stormproof_train", "search", *self._arguments, "search.workers=1"]
            for environment in environments[1:]:
                self._processes.append(
                    subprocess.Popen(command, env={**os.environ, **environment, HELPER_VARIABLE: "1"})
                )
            os.environ.update(environments[0])
        return self

    def __exit__(self, error_type: object, *error: object) -> None:
        """Waits for the other workers. If this process failed, it terminates them first."""
        if error_type is not None:
            for process in self._processes:
                process.terminate()
        exit_codes = [process.wait() for process in self._processes]
        if error_type is None and any(exit_codes):
            exit_code = next(filter(None, exit_codes))
            print_line(
                f"warning: a worker on this machine ended with code {exit_code}; other workers finished its jobs"
            )


def build_worker_environment(
    worker_index: int, num_workers: int, environ: Mapping[str, str] = os.environ, num_gpus: int | None = None
) -> dict[str, str]:
    """Returns the environment variables with a worker's share of the cores and GPUs.

    Args:
        worker_index: Index of the worker.
        num_workers: Number of workers on this machine.
        environ: Current environment. Variables that are already set are kept.
        num_gpus: Number of GPUs of this machine. None counts them.

    Returns:
        Environment variables to set.

    Example:
        >>> build_worker_environment(1, 2, {"OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": "2,3,5"}, num_gpus=3)
        {'CUDA_VISIBLE_DEVICES': '3'}
        >>> build_worker_environment(2, 4, {"OMP_NUM_THREADS": "1"}, num_gpus=2)
        {'CUDA_VISIBLE_DEVICES': '0'}
    """
    variables: dict[str, str] = {}
    if "OMP_NUM_THREADS" not in environ:
        variables["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // num_workers))
    gpu_count = torch.cuda.device_count() if num_gpus is None else num_gpus
    if gpu_count:
        visible_gpus = environ["CUDA_VISIBLE_DEVICES"].split(",") if "CUDA_VISIBLE_DEVICES" in environ else None
        gpu_names = visible_gpus or [str(gpu_index) for gpu_index in range(gpu_count)]
        worker_gpus = (
            gpu_names[worker_index::num_workers]
            if num_workers <= len(gpu_names)
            else [gpu_names[worker_index % len(gpu_names)]]
        )
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(worker_gpus)
    return variables
