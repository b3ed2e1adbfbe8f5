import subprocess
import sys

import pytest

from stormproof_train.cli import main, train


def test_hydra_1_3_is_rejected_on_python_3_14(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "version_info", (3, 14, 0, "final", 0))
    monkeypatch.setattr(main, "version", lambda package: {"hydra-core": "1.3.8"}[package])
    assert main.main(["activation=elu"]) == 2
    sentence = "Hydra 1.3.8 does not support Python 3.14. Run: pip install 'hydra-core>=1.4.0rc3,<1.5'"
    assert capsys.readouterr().err == f"stormproof: {sentence}\n"


@pytest.mark.parametrize(
    "words",
    [
        ["search", "search.folder=s3://bucket/x"],
        ["compress", "run=gs://bucket/run"],
        ["compress", "run=runs/mine", "folder=hdfs://host/x"],
        ["evaluate", "checkpoint=s3://bucket/run"],
        ["evaluate", "checkpoint=runs/mine", "against=s3://bucket/run"],
        ["predict", "model=compressed/mine", "input=s3://bucket/x.png"],
    ],
)
def test_a_url_in_place_of_a_path_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]):
    assert main.main(words) == 2
    assert capsys.readouterr().err.endswith("is a URL; only local or mounted paths are supported\n")


def test_a_deletion_may_be_the_first_word(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    commands: list[list[str]] = []
    monkeypatch.setattr(train, "_run_hydra", lambda overrides: commands.append(overrides) or 0)
    assert main.main(["~callbacks.generalization_gap", "seed=1"]) == 0
    assert commands == [["~callbacks.generalization_gap", "seed=1"]]


@pytest.mark.parametrize("words", [[], ["train"]])
def test_a_command_without_settings_trains_the_default(words: list[str], monkeypatch: pytest.MonkeyPatch):
    called: list[str] = []
    monkeypatch.setattr("hydra.main", lambda **_: lambda _: lambda: called.append("trained"))
    assert main.main(words) == 0
    assert called == ["trained"]


@pytest.mark.parametrize("command", ["train", "search", "evaluate", "compress", "predict"])
def test_every_command_warns_of_a_setting_without_effect(command: str, capsys: pytest.CaptureFixture[str]):
    assert main.main([command, "data.path=a", "data.path=b", "--version"]) == 0
    assert "warning: data.path=a has no effect: data.path=b overrides it\n" in capsys.readouterr().out


LOCKED = """
import multiprocessing
import sys

from stormproof_train.cli import main

queue = multiprocessing.Queue()
queue.put(1)  # which starts its thread


def fail(words):
    queue._notempty.acquire()
    raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed. ")


main._dispatch = fail
sys.exit(main.main([]))
"""


@pytest.mark.slow
def test_the_process_exits_even_if_a_queue_is_locked_when_a_worker_is_killed():
    result = subprocess.run([sys.executable, "-c", LOCKED], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 75, result.stderr
    assert "a data loader worker was killed" in result.stderr
