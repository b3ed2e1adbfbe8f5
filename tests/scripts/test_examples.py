"""The scripts and the commands that people copy from."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stormproof_train.cli.search import check_space
from stormproof_train.cli.search_help import describe_settings
from stormproof_train.config.conf_dir import conf_dir
from stormproof_train.examples import shipped
from stormproof_train.search.arguments import Composer, parse_arguments
from tests.support.forked_command import ROOT
from tests.support.waiting import wait_for

SCRIPT = ROOT / "scripts" / "examples" / "stock_lightning.py"
PAGE = "docs/how-to/search.md"


def _documented_searches() -> list[str]:
    """The words of every search that is written out in full."""
    files = [ROOT / name for name in ("README.md", PAGE, "docs/how-to/slurm.md", "scripts/slurm/search.sbatch")]
    text = "\n".join(re.sub(r"\\\n#? *", "", file.read_text()) for file in files)
    matches = re.findall(r"(?:train\.py search|search\.sbatch) ([^`\n]*)", text)
    return [arguments for arguments in matches if "=" in arguments and "…" not in arguments]


def _start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _wait_for_exit(process: subprocess.Popen[str]) -> str:
    stdout, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr
    return stdout


@pytest.mark.drill
def test_the_stock_script_ends_with_the_same_weights_after_kills(tmp_path: Path):
    uninterrupted = _wait_for_exit(_start(tmp_path / "whole"))
    assert re.search(r"^steps: 1280$", uninterrupted, re.MULTILINE)
    checkpoints = tmp_path / "killed"
    for committed in ("000003-*.json", "000009-*.json"):
        process = _start(checkpoints)
        wait_for(
            lambda pattern=committed, running=process: any(checkpoints.glob(pattern)) or running.poll() is not None
        )
        assert process.poll() is None, process.communicate()
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    killed = _wait_for_exit(_start(checkpoints))
    assert re.search(r"^steps: 1280$", killed, re.MULTILINE)
    assert re.findall(r"^weights: .*$", killed, re.MULTILINE) == re.findall(
        r"^weights: .*$", uninterrupted, re.MULTILINE
    )


def test_the_table_that_ships_is_the_one_that_its_script_makes(tmp_path: Path):
    script = ROOT / "scripts" / "examples" / "make_deliveries.py"
    subprocess.run([sys.executable, str(script), str(tmp_path / "made.csv")], check=True, timeout=60)
    assert (tmp_path / "made.csv").read_bytes() == Path(shipped("deliveries.csv")).read_bytes()


def test_four_lines_of_it_are_ours():
    lines = SCRIPT.read_text().splitlines()
    assert [line[-1] for line in lines if re.search(r"  # \d$", line)] == ["1", "2", "3", "4"]
    our_lines = [line for line in lines if re.search(r"stormproof|resumable|recovery|CheckpointRecovery", line)]
    assert all(line.endswith(("# 1", "# 2", "# 3", "# 4")) for line in our_lines if "callbacks=" not in line)


@pytest.mark.slow
@pytest.mark.parametrize("words", _documented_searches())
def test_a_search_that_is_written_out_can_begin(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = re.search(r"```yaml\n(.*?)```", (ROOT / PAGE).read_text(), re.DOTALL)
    assert config is not None
    (tmp_path / "my_configs" / "search").mkdir(parents=True)
    (tmp_path / "my_configs" / "search" / "small.yaml").write_text(config[1])
    monkeypatch.chdir(tmp_path)
    arguments = parse_arguments(shlex.split(words, comments=True), conf_dir())
    assert len(arguments.space.parameters) >= 2
    check_space(arguments, Composer(conf_dir(), arguments.flags))


def test_every_setting_of_a_search_is_on_its_page():
    page = (ROOT / PAGE).read_text()
    assert [name for name in describe_settings() if f"`search.{name}`" not in page] == []
