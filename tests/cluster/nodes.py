"""Two nodes on one machine: network namespaces with a link that can be cut, each with its own /dev/shm."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

NAMES = ("stormproof-a", "stormproof-b")
ADDRESSES = ("10.77.31.1", "10.77.31.2")


class Nodes:
    """Node 0 and node 1; each has one device, ``set_cable``, and its own loopback."""

    def __init__(self) -> None:
        if shutil.which("ip") is None or os.geteuid() != 0:
            raise RuntimeError("these tests need iproute2 and root, for network namespaces")
        self._running: list[subprocess.Popen[bytes]] = []
        self._memories: list[Path] = []
        self.remove()
        for _ in NAMES:
            self._memories.append(Path(tempfile.mkdtemp(prefix="memory")))
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(self._memories[-1])], check=True)
        for name in NAMES:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("link", "add", "cable", "netns", NAMES[0], "type", "veth", "peer", "name", "cable", "netns", NAMES[1])
        for name, address in zip(NAMES, ADDRESSES, strict=True):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            _ip("-n", name, "link", "set", "cable", "up")

    def start(self, node: int, command: Sequence[str], cwd: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Starts ``command`` there, its output in ``node<number>.txt``."""
        with (cwd / f"node{node}.txt").open("ab") as output:
            mount = f'mount --bind "{self._memories[node]}" /dev/shm && exec "$@"'  # in a mount namespace of its own
            namespace_command = ["ip", "netns", "exec", NAMES[node], "sh", "-c", mount, "sh", *command]
            process = subprocess.Popen(
                namespace_command, cwd=cwd, env=env, stdout=output, stderr=output, start_new_session=True
            )
        self._running.append(process)
        return process

    def pids(self, node: int) -> list[int]:
        """All processes of a node."""
        result = subprocess.run(["ip", "netns", "pids", NAMES[node]], capture_output=True, text=True, check=True)
        return [int(pid) for pid in result.stdout.split()]

    def kill(self, node: int) -> None:
        """The power goes off: every process there dies at once, and the memory is lost."""
        while pids := self.pids(node):
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        if self._memories:
            for path in self._memories[node].iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def list_memory(self, node: int) -> list[Path]:
        """All files in the memory of a node."""
        return [path for path in self._memories[node].rglob("*") if path.is_file()]

    def set_cable(self, state: str) -> None:
        """Pulls the cable (``down``) or puts it back (``up``)."""
        _ip("-n", NAMES[1], "link", "set", "cable", state)

    def remove(self) -> None:
        """Kills all that runs there, and takes the nodes away."""
        namespaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout.split()
        for node, name in enumerate(NAMES):
            if name in namespaces:
                self.kill(node)
                _ip("netns", "delete", name)
        for process in self._running:
            process.wait(timeout=20)
        while self._memories:
            memory = self._memories.pop()
            subprocess.run(["umount", str(memory)], check=True)
            memory.rmdir()


def _ip(*overrides: str) -> None:
    subprocess.run(["ip", *overrides], check=True, capture_output=True)
