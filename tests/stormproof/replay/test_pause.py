import atexit
import os
import signal
import time
import warnings
from pathlib import Path

from stormproof.replay.pause import PAUSES_VARIABLE, PausedProcess, PausePoint, Pauses, format_pauses, read_paused
from stormproof.replay.recorder.ledger_writer import LedgerWriter
from tests.support.fork_exit import run_and_exit


def fork_process(folder: Path, environment: dict[str, str]) -> int:
    """Forks a process that records three steps, each followed by a save, and returns its process ID."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: pytest-xdist has a thread
        pid = os.fork()
    if pid == 0:
        run_and_exit(lambda: make_steps(folder, environment))
    return pid


def make_steps(folder: Path, environment: dict[str, str]) -> None:
    atexit._clear()  # the exit functions of pytest
    os.environ.update(environment)
    writer = LedgerWriter(folder, "/", 1, time.time_ns())
    for step in range(1, 4):
        writer.write("step", n=step, optimizer=0, time=0.0, hashed=False, components={})
        writer.write("save", phase="open", path=f"{step}.pt", after_step=step, time=0.0)


def test_a_process_stops_at_each_point_once_and_counts_earlier_processes_of_its_rank(tmp_path: Path):
    points = [
        PausePoint("step", 2),
        PausePoint("save", 3, "open"),
        PausePoint("step", 5),
        PausePoint("step", 2, rank=1),
        PausePoint("save", 1, "open", rank=1),
    ]
    environment = {PAUSES_VARIABLE: format_pauses(points)}
    for rank, paths in [(0, {0: "", 1: "3.pt"}), (0, {2: ""}), (0, {}), (1, {4: "1.pt", 3: ""})]:
        pid = fork_process(tmp_path, {**environment, "RANK": str(rank), "WORLD_SIZE": "2"})
        for index, path in paths.items():
            _, status = os.waitpid(pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status)
            assert read_paused(tmp_path, index) == PausedProcess(index, pid, path)
            os.kill(pid, signal.SIGCONT)
        assert os.waitpid(pid, 0)[1] == 0


def test_nothing_stops_without_the_variable(tmp_path: Path):
    assert Pauses.from_environment(tmp_path, {}) is None
