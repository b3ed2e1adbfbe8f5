"""An S3 server in a process, buckets in it, and stores of checkpoints in buckets."""

from __future__ import annotations

import functools
import os
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stormproof.checkpoint import Store
from stormproof.checkpoint.storage import ObjectStorage, object_store
from tests.support.checkpoint_files import commit_checkpoint
from tests.support.waiting import wait_for

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}


def in_clean_process(test: Callable[..., None]) -> Callable[..., None]:
    """Decorates a test that forks processes which use an object store.

    Runs the test in a new process if this one has used an object store, because the threads of obstore do not survive a
    fork.
    """

    @functools.wraps(test)
    def run(*arguments: Any, **options: Any) -> None:
        if not object_store._process_ids:
            test(*arguments, **options)
            return
        node_id = os.environ["PYTEST_CURRENT_TEST"].removesuffix(" (call)")
        command = [sys.executable, "-m", "pytest", "-n", "0", "-m", "", node_id]
        result = subprocess.run(command, check=False, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr

    return run


class S3Server:
    """A running server of ``moto``, which keeps its objects in memory."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.endpoint = f"http://127.0.0.1:{port}"
        self._count = 0

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """Returns the variables with which a process uses this server, or a proxy in front of it."""
        return {**CREDENTIALS, "AWS_ENDPOINT_URL": endpoint or self.endpoint}

    def make_bucket(self) -> str:
        """Returns the name of a new bucket."""
        self._count += 1
        name = f"bucket-{self._count}"
        request = urllib.request.Request(f"{self.endpoint}/{name}", method="PUT")
        urllib.request.urlopen(request, timeout=30).close()
        return name


@contextmanager
def run_s3_server() -> Iterator[S3Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = Path(tempfile.mkstemp(suffix=".log")[1])
    command = [sys.executable, str(Path(__file__).with_name("s3_server_process.py")), str(port)]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, "PYTHONWARNINGS": "ignore"})
    try:
        server = S3Server(port)
        wait_for(lambda: _responds(server), 120)
        yield server
    finally:
        process.kill()
        process.wait()
        log.unlink()


def _responds(server: S3Server) -> bool:
    try:
        urllib.request.urlopen(server.endpoint, timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def make_object_store(storage: ObjectStorage, steps: Sequence[int] = (10, 20, 30)) -> Store:
    """Creates an attempt and a checkpoint at each of ``steps``."""
    store = Store(storage)
    attempt = store.begin_attempt(store.resolve())
    for step in steps:
        commit_checkpoint(store, step, attempt=attempt)
    return store


def object_names(storage: ObjectStorage) -> set[str]:
    """Returns the objects that are not in a folder."""
    return {entry.name for entry in storage.list() if not entry.is_folder}


def overwrite(storage: ObjectStorage, name: str, content: bytes) -> None:
    """Replaces an object as another program would."""
    storage._obstore.put(storage._store, name, content)


def flip_object_bit(storage: ObjectStorage, name: str) -> None:
    content = bytearray(storage.read(name))
    content[len(content) // 2] ^= 1
    overwrite(storage, name, bytes(content))
