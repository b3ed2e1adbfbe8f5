"""Follows README and tutorials: writes their files into an empty folder, runs their commands and compares the output.

Each line of output on a page must occur in the real output, in the same order. Numbers and hex digits may differ, and
``…`` stands for any text. A page may leave lines out.
"""

import json
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests.support.forked_command import FORKSERVER_CONTEXT, ROOT, TRAIN, run_script
from tests.support.waiting import wait_for

BLOCK = re.compile(r'^```(\w+)(?: title="(\S+)")?[^\n]*\n(.*?)^```$', re.DOTALL | re.MULTILINE)
SKIPPED = ("pip install ", "git clone ", "cd ")
WILDCARDS = {
    r"…": r".*",
    r"\b[0-9a-f]{8,}\b": r"[0-9a-f]+",
    r"-?\d[\d.,]*(?:e-?\d+)?": r"-?[\d.,]+(?:e-?\d+)?",
    r"\s+": r"\s+",
}
"""Patterns of text on a page, and of the real text that may replace it."""

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("command")]


@dataclass(frozen=True)
class Step:
    """A command and the output that the page shows."""

    command: str
    shown: list[str]


def _read(page: str) -> tuple[dict[str, str], list[Step]]:
    """Returns the files and the commands of a tutorial."""
    files, steps = dict[str, str](), list[Step]()
    for _language, title, text in BLOCK.findall((ROOT / "docs" / "tutorials" / page).read_text()):
        if title:
            files[title] = text
        for block in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:] if not title else []:
            command, *shown = block.replace("\\\n", "").rstrip("\n").split("\n")
            if not command.startswith(SKIPPED):
                steps.append(Step(command, shown))
    return files, steps


def _pattern(line: str) -> str:
    """Returns the regular expression that a real line must match."""
    parts = re.split(f"({'|'.join(WILDCARDS)})", line.strip())
    wildcards = (next((real for shown, real in WILDCARDS.items() if re.fullmatch(shown, part)), None) for part in parts)
    return "".join(real or re.escape(part) for part, real in zip(parts, wildcards, strict=True))


def _missing(shown: list[str], output: str) -> Iterator[str]:
    """Yields the lines on a page that the output lacks, or has in another order."""
    lines = iter([line.strip() for line in output.splitlines()])
    for line in shown:
        if not any(re.fullmatch(_pattern(line), real) for real in lines):
            yield line


@dataclass
class Shell:
    """Runs the commands of a page in a folder."""

    folder: Path
    outputs: list[str] = field(default_factory=list)
    background: BaseProcess | None = None

    def run(self, step: Step) -> None:
        """Runs a command, and fails unless it succeeds with the output on the page."""
        output = self._execute(step)
        assert [*_missing(step.shown, output)] == [], f"$ {step.command}\n{output}"
        self.outputs.append(output)

    def _execute(self, step: Step) -> str:
        match shlex.split(step.command):
            case ["kill", "-9", "%1"]:
                assert self.background is not None
                assert self.background.pid is not None
                os.kill(self.background.pid, signal.SIGKILL)
                self.background.join()
                return ""
            case ["python", "train.py", *arguments] | ["stormproof-train", *arguments]:
                return self._run_python(TRAIN, arguments)
            case ["python", script, *arguments, "&"]:
                return self._start(script, arguments, until=step.shown[-1])
            case ["python", script, *arguments]:
                return self._run_python(self.folder / script, arguments)
            case ["ls", *_] as words:
                return subprocess.run(words, cwd=self.folder, capture_output=True, text=True, check=True).stdout
            case _:
                raise AssertionError(f"No test can run `{step.command}`.")

    def _run_python(self, script: Path, arguments: list[str]) -> str:
        process, stdout, stderr = self._fork(script, arguments)
        process.join(200)
        assert process.exitcode == 0, stderr.read_text()
        return stdout.read_text()

    def _start(self, script: str, arguments: list[str], until: str) -> str:
        """Starts a script and returns its output as soon as a line appears."""
        process, stdout, stderr = self._fork(self.folder / script, arguments)
        self.background = process
        wait_for(lambda: not process.is_alive() or (stdout.exists() and until in stdout.read_text().splitlines()))
        assert process.is_alive(), stderr.read_text()
        return stdout.read_text()

    def _fork(self, script: Path, arguments: list[str]) -> tuple[BaseProcess, Path, Path]:
        logs = self.folder.parent / f"{self.folder.name}-logs"
        logs.mkdir(exist_ok=True)
        number = len(self.outputs)
        stdout, stderr = logs / f"{number}.out", logs / f"{number}.err"
        process = FORKSERVER_CONTEXT.Process(
            target=run_script, args=(script, arguments, self.folder, dict(os.environ), stdout, stderr)
        )
        process.start()
        return process, stdout, stderr


def _follow(page: str, folder: Path) -> list[str]:
    """Follows a tutorial in an empty folder and returns the output of each command."""
    files, steps = _read(page)
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    shell = Shell(folder)
    for step in steps:
        shell.run(step)
    return shell.outputs


def test_the_readme_shows_the_output_of_its_first_command(tmp_path: Path):
    readme = (ROOT / "README.md").read_text()
    block = re.search(r"^\$ pip install .* && (python train\.py .*)\n((?:.*\n)*?)```$", readme, re.MULTILINE)
    assert block
    Shell(tmp_path).run(Step(block[1], block[2].splitlines()))


def test_the_plugin_ends_with_the_weights_of_an_uninterrupted_run(tmp_path: Path):
    uninterrupted, _, _, _, resumed = _follow("plugin.md", tmp_path)
    weights = re.compile(r"^weights (\w+) after 768 steps$", re.MULTILINE)
    assert weights.findall(resumed) == weights.findall(uninterrupted) != []
    assert resumed.splitlines()[0] != uninterrupted.splitlines()[0] == "epoch 0"
    page = (ROOT / "docs/tutorials/plugin.md").read_text()
    assert len({*weights.findall(page)}) == 1, "The page shows two runs with the same weights."


def test_the_highlighted_lines_of_the_plugin_are_those_that_use_it():
    page = (ROOT / "docs/tutorials/plugin.md").read_text()
    (highlighted,) = re.findall(r'hl_lines="([\d ]+)"', page)
    (code,) = _read("plugin.md")[0].values()
    lines = enumerate(code.splitlines(), start=1)
    ours = [str(number) for number, line in lines if re.search(r"stormproof|resumable|recovery", line)]
    assert highlighted.split() == ours


def test_the_application_trains_and_compares_two_activations(tmp_path: Path):
    _follow("application.md", tmp_path)
    for name in ("elu", "relu"):
        assert "<html" in (tmp_path / "runs" / name / "report.html").read_text()
    assert "<html" in (tmp_path / "runs.html").read_text()


def test_a_model_and_data_of_a_user_train_in_an_empty_folder(tmp_path: Path):
    _follow("own_model_and_data.md", tmp_path)
    for name in ("first", "second", "patients"):
        assert json.loads((tmp_path / "runs" / name / "run.json").read_text())["status"] == "finished"
        assert "<html" in (tmp_path / "runs" / name / "report.html").read_text()
