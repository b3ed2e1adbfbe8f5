import subprocess
from pathlib import Path

import pytest

from stormproof_train import loggers as module
from stormproof_train.loggers import GitState, read_git_state


def git(*overrides: str) -> str:
    identity = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
    return subprocess.run(["git", *identity, *overrides], capture_output=True, text=True, check=True).stdout.strip()


def test_the_commit_and_whether_a_file_was_changed_since(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert read_git_state() is None
    git("init", "--quiet")
    assert read_git_state() is None
    (tmp_path / "code.py").write_text("")
    git("add", "code.py")
    git("commit", "--quiet", "--message=first")
    git("tag", "a-tag")
    commit = git("rev-parse", "HEAD")
    (tmp_path / "new.txt").write_text("git does not track it")
    assert read_git_state() == GitState(commit, dirty=False)
    (tmp_path / "code.py").write_text("changed")
    assert read_git_state() == GitState(commit, dirty=True)


def test_without_git_there_is_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    assert read_git_state() is None


def test_a_git_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    def hangs(*overrides: object, timeout: float, **arguments: object) -> None:
        raise subprocess.TimeoutExpired("git", timeout)

    monkeypatch.setattr(module.subprocess, "run", hangs)
    assert read_git_state() is None
