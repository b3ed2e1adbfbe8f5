"""``search --help``, and that a run's help says nothing of searches."""

import dataclasses
import re
from pathlib import Path

import pytest

from stormproof_train.cli import help as help_of_runs
from stormproof_train.cli.search_help import describe_settings, print_help
from stormproof_train.config.conf_dir import conf_dir
from stormproof_train.search.settings import Settings


def test_every_setting_is_described():
    assert list(describe_settings()) == [field.name for field in dataclasses.fields(Settings)]
    assert all(10 < len(line) < 200 for line in describe_settings().values())


def test_the_help_lists_every_shipped_search_and_every_setting_with_its_default(capsys: pytest.CaptureFixture[str]):
    print_help([])
    output = capsys.readouterr().out
    shipped = {file.stem for file in (conf_dir() / "search").glob("*.yaml")}
    assert set(re.findall(r"^  search=(\S+) +\S", output, re.MULTILINE)) == shipped
    assert re.search(r"^  search\.sampler=tpe +Proposes parameters: tpe, gp", output, re.MULTILINE)
    assert re.search(
        r'^  search\.constraints=\[\] +Constraints such as \["parameters<=100000"\]$', output, re.MULTILINE
    )
    assert re.search(r"^  search\.trials=null +Number of trials", output, re.MULTILINE)


def test_the_help_lists_the_users_own_searches(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "mine.yaml").write_text("# Mine, of forty.\ntrials: 40\n")
    print_help(["--config-dir", str(tmp_path)])
    assert re.search(r"^  search=mine +Mine, of forty\.$", capsys.readouterr().out, re.MULTILINE)


def test_a_search_is_no_choice_of_a_run(capsys: pytest.CaptureFixture[str]):
    help_of_runs.print_help(conf_dir(), [])
    output = capsys.readouterr().out
    assert "  activation=elu " in output
    assert not re.search(r"^  search", output, re.MULTILINE)
