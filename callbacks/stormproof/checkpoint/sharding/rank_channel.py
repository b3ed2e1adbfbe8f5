"""Messages between the background threads of the ranks."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from stormproof.distributed.collectives import broadcast
from stormproof.distributed.rank import main_address

POLL_INTERVAL = timedelta(seconds=1)
"""Time after which a thread that waits for a message checks whether it should stop."""
CONNECT_TIMEOUT = timedelta(seconds=300)


class RankChannel:
    """Sends Python objects between the threads of a job, by a server of torch on rank 0.

    Collectives belong to the training thread. All ranks create the channel together.

    Raises:
        DistNetworkError: If a rank cannot connect to rank 0.
    """

    def __init__(self) -> None:
        is_rank_zero = dist.get_rank() == 0
        host = broadcast(main_address() if is_rank_zero else "")
        self._store = (
            dist.TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=CONNECT_TIMEOUT)
            if is_rank_zero
            else None
        )
        port = broadcast(0 if self._store is None else self._store.port)
        if self._store is None:
            self._store = dist.TCPStore(host, port, wait_for_workers=False, timeout=CONNECT_TIMEOUT)

    def send(self, key: str, message: Any) -> None:
        """Sends a picklable object under a key that is used once."""
        self._store.set(key, pickle.dumps(message))

    def receive(self, key: str, should_stop: Callable[[], bool]) -> Any:
        """Waits for a message and returns it.

        Args:
            key: Key of the message.
            should_stop: Called every second while there is no message.

        Raises:
            TimeoutError: If ``should_stop`` returns True.
            ConnectionError: If rank 0 has ended.
        """
        while not should_stop():
            try:
                self._store.wait([key], POLL_INTERVAL)
                return pickle.loads(self._store.get(key))  # noqa: S301 (sent by a rank of this job)
            except dist.DistStoreError:
                time.sleep(0.01)  # in case the server refuses without waiting
            except dist.DistNetworkError as error:
                raise ConnectionError(f"rank 0 cannot be reached: {error}") from error
        raise TimeoutError(f"there was no message {key}")
