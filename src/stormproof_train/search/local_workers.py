"""The workers of this machine, and what of it each has."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Self

import torch

from stormproof_train.console import say

HELPS = "STORMPROOF_SEARCH_HELPS"
"""Set for those that another worker has started: it speaks for them in the end."""


class LocalWorkers:
    """Starts further workers beside this process, which is the first, and shares out the machine.

    Each is a process that runs the same command; one whose first worker is gone goes on.

    Args:
        words: after the command ``search``.
        workers: in all.
    """

    def __init__(self, words: Sequence[str], workers: int) -> None:
        self._words, self._workers = words, workers
        self._others: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        """Starts them."""
        if self._workers > 1:
            shares = [share(place, self._workers) for place in range(self._workers)]
            command = [sys.executable, "-m", "stormproof_train", "search", *self._words, "search.workers=1"]
            for each in shares[1:]:
                self._others.append(subprocess.Popen(command, env={**os.environ, **each, HELPS: "1"}))
            os.environ.update(shares[0])
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        """Waits for them; where this one ends early, tells them to end."""
        if kind is not None:
            for each in self._others:
                each.terminate()
        codes = [each.wait() for each in self._others]
        if kind is None and any(codes):
            code = next(filter(None, codes))
            say(f"warning: a worker of this machine ended with code {code}; the others did its work")


def share(place: int, workers: int, environ: Mapping[str, str] = os.environ, gpus: int | None = None) -> dict[str, str]:
    """The part of this machine that a worker has: as many cores as any, and the GPUs in turn.

    Args:
        place: of the worker, from 0.
        workers: in all.
        environ: what is set already stays.
        gpus: of this machine; None to count them.

    Returns:
        Variables of the environment.

    Example:
        >>> share(1, 2, {"OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": "2,3,5"}, gpus=3)
        {'CUDA_VISIBLE_DEVICES': '3'}
        >>> share(2, 4, {"OMP_NUM_THREADS": "1"}, gpus=2)
        {'CUDA_VISIBLE_DEVICES': '0'}
    """
    found: dict[str, str] = {}
    if "OMP_NUM_THREADS" not in environ:
        found["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // workers))
    count = torch.cuda.device_count() if gpus is None else gpus
    if count:
        visible = environ["CUDA_VISIBLE_DEVICES"].split(",") if "CUDA_VISIBLE_DEVICES" in environ else None
        names = visible or [str(each) for each in range(count)]
        mine = names[place::workers] if workers <= len(names) else [names[place % len(names)]]
        found["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
    return found
