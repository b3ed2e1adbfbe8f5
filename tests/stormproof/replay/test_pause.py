import os
import signal
import subprocess
import sys
from pathlib import Path

from stormproof.replay.pause import PAUSES_VARIABLE, PausePoint, Pauses, format_pauses, read_paused

PROGRAM = """
import sys
from pathlib import Path
from stormproof.replay.pause import Pauses
pauses = Pauses.from_environment(Path(sys.argv[1]))
for step in range(1, 4):
    pauses.after({"event": "step", "n": step}, 0)
    pauses.after({"event": "save", "phase": "open", "path": f"{step}.pt"}, 0)
"""


def test_a_process_stops_at_each_point_once(tmp_path: Path):
    points = [PausePoint("step", 2), PausePoint("save", 3, "open"), PausePoint("step", 2, rank=1)]
    environment = {**os.environ, PAUSES_VARIABLE: format_pauses(points)}
    for expected in [[0, 1], []]:  # a second process of the run does not stop again
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], env=environment)
        for index in expected:
            _, status = os.waitpid(process.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status)
            paused = read_paused(tmp_path, index)
            assert paused is not None
            assert (paused.index, paused.pid, paused.path) == (index, process.pid, "3.pt" if index else "")
            process.send_signal(signal.SIGCONT)
        assert process.wait(20) == 0
    assert read_paused(tmp_path, 2) is None


def test_nothing_stops_without_the_variable(tmp_path: Path):
    assert Pauses.from_environment(tmp_path, {}) is None
