"""Real SLURM on this machine: munged, slurmctld, and two slurmd that pass for two nodes.

No systemd, no root, nothing outside one folder, and everything on loopback, at ports that were free.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pytest

NODES = ("n1", "n2")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue", "sinfo")
PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin"])  # where Debian has the daemons, and not everyone looks
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE"}

# cred_expire is how long a job that was requeued waits, too: 120 s by default. SlurmdTimeout: a node that is silent for
# as long is down, and its jobs are requeued. ReturnToService: one that comes back is a node again.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPort={ports[0]}
SlurmctldPidFile={folder}/slurmctld.pid
StateSaveLocation={folder}/state
SlurmdPidFile={folder}/%n/slurmd.pid
SlurmdSpoolDir={folder}/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,sched_min_interval=0
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=5
KillWait=5
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 State=UNKNOWN
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def missing_programs() -> list[str]:
    """The programs that are not installed."""
    return [program for program in PROGRAMS if shutil.which(program, path=PATH) is None]


@contextmanager
def run_cluster() -> Iterator[Cluster]:
    """A cluster of two nodes, for as long as it is wanted."""
    if missing_programs():
        needed = "apt-get install --no-install-recommends slurm-wlm munge"
        pytest.fail(
            f"{', '.join(missing_programs())} not found: the tests marked cluster need SLURM ({needed})", pytrace=False
        )
    with TemporaryDirectory(prefix="slurm-") as folder:
        cluster = Cluster(Path(folder))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


def poll(condition: Callable[[], Any], description: str, seconds: float = 60) -> Any:
    """What ``condition`` answers once that is true.

    Raises:
        TimeoutError: if it is not after so many seconds.
    """
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {seconds:.0f} s still not: {description}")
        time.sleep(0.1)
    return result


class Cluster:
    """Two nodes, ``n1`` and ``n2``, in a folder of their own.

    Args:
        folder: for configuration, state and logs; short, because a socket's path may have 107 signs.

    Attributes:
        env: what a command needs to reach it, and a job to train on it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("state", *NODES):
            (folder / name).mkdir()
        configuration = folder / "slurm.conf"
        configuration.write_text(
            CONFIGURATION.format(folder=folder, host=socket.gethostname(), user=getpass.getuser(), ports=_free_ports(3))
        )
        (folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o600)
        self.env = {
            **os.environ,
            "SLURM_CONF": str(configuration),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), PATH]),  # a job's `python`
            "MASTER_ADDR": "127.0.0.1",
            "GLOO_SOCKET_IFNAME": "lo",
        }

    def start(self) -> None:
        """Starts everything, and waits until both nodes take jobs."""
        folder = self.folder
        files = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
        self._start_daemon("munged", "--foreground", "--force", f"--socket={folder}/munge.sock", *files)
        poll((folder / "munge.sock").exists, "munged listens")
        self._start_daemon("slurmctld", "-D", "-i")
        poll(self._is_answering, "slurmctld answers")
        for node in NODES:
            self.start_node(node)

    def start_node(self, node: str) -> None:
        """Starts a node, as at first, or again after it was killed, and waits until it takes jobs."""
        self._start_daemon("slurmd", "-D", "-N", node, name=node)
        poll(lambda: self.node_state(node) in {"idle", "mixed", "allocated"}, f"{node} takes jobs")

    def kill_node(self, node: str) -> None:
        """SIGKILL for all that runs there, and waits until SLURM has noticed."""
        self._daemons[node].kill()
        node_processes = [process for process in self._processes() if _environ(process).get("SLURMD_NODENAME") == node]
        step_daemons = {
            parent for process in node_processes for parent in process.parents() if parent.name() == "slurmstepd"
        }
        for process in (*step_daemons, *node_processes):  # first those that would tell of the end of the others
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._daemons.pop(node).wait()
        poll(lambda: self.node_state(node) == "down", f"{node} is down")

    def stop(self) -> None:
        """Ends all jobs and all daemons.

        Raises:
            RuntimeError: if a process had to be killed for it.
        """
        try:
            if "slurmctld" in self._daemons:
                self.run_command("scancel", "--me")
                poll(lambda: not self.run_command("squeue", "-h"), "no job is left", 30)
        finally:
            for daemon in reversed(self._daemons.values()):
                daemon.terminate()
            for daemon in self._daemons.values():
                with suppress(subprocess.TimeoutExpired):
                    daemon.wait(10)
            _, remaining = psutil.wait_procs(
                list(self._processes()), timeout=10
            )  # a job's last one may just be leaving
            for process in remaining:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            for daemon in self._daemons.values():
                daemon.wait()
        if remaining:
            raise RuntimeError(f"left behind, and killed: {remaining}")

    def submit(self, *arguments: str, cwd: Path, env: Mapping[str, str] | None = None) -> str:
        """``sbatch`` with these words, and ``env`` besides what every job needs; the job's id."""
        return self.run_command("sbatch", "--parsable", "--output=%x-%j.out", *arguments, cwd=cwd, env=env)

    def state(self, job: str) -> str:
        """``PENDING``, ``RUNNING``, ``COMPLETED``, …"""
        return self.run_command("squeue", "-h", "--states=all", "-o", "%T", "-j", job)

    def node_state(self, node: str) -> str:
        """``idle``, ``allocated``, ``down``, …; with a star where it does not answer."""
        return self.run_command("sinfo", "-h", "-N", "-n", node, "-o", "%T").rstrip("*")

    def wait(self, job: str, seconds: float = 120) -> str:
        """The state in which a job has ended for good."""
        return poll(lambda: self.state(job) in ENDED and self.state(job), f"job {job} has ended", seconds)

    def run_command(self, *command: str, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
        """What a command answers."""
        environment = {**self.env, **(env or {})}
        return subprocess.check_output(command, cwd=cwd, env=environment, text=True, timeout=60).strip()

    def _is_answering(self) -> bool:
        ping = subprocess.run(["scontrol", "ping"], env=self.env, capture_output=True, timeout=60, check=False)
        return ping.returncode == 0

    def _start_daemon(self, *command: str, name: str = "") -> None:
        name = name or command[0]
        with (self.folder / f"{name}.log").open("ab") as log:
            # in a session of its own: a Ctrl-C is for the tests, which then stop it
            self._daemons[name] = subprocess.Popen(
                command, cwd=self.folder, env=self.env,
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def _processes(self) -> Iterator[psutil.Process]:
        """Whatever belongs to this cluster: by its environment, or, as slurmstepd writes over that, by its folder."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):  # it has ended meanwhile, or is a zombie: whoever has to wait for it does not
                is_in_cluster = _environ(process).get("SLURM_CONF") == self.env["SLURM_CONF"]
                if is_in_cluster or Path(process.cwd()).is_relative_to(self.folder):
                    yield process


def _environ(process: psutil.Process) -> dict[str, str]:
    with suppress(psutil.Error):
        return process.environ()
    return {}


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for free_socket in sockets:
        free_socket.bind(("127.0.0.1", 0))
    ports = [free_socket.getsockname()[1] for free_socket in sockets]
    for free_socket in sockets:
        free_socket.close()
    return ports
