"""``stormproof-train search``: real searches, whose trials are processes of their own."""

import json
import os
import random
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from wandb.proto.wandb_internal_pb2 import RunRecord

from stormproof.checkpoint import Lease
from stormproof_train.cli.main import main
from stormproof_train.run.metrics_file import read_rows
from stormproof_train.search import worker
from tests.support import forked_command
from tests.support.cases import EVERY, slow_except
from tests.support.forked_command import Command
from tests.support.waiting import wait_for

TINY = {
    "search.name": "mine", "search.trials": "2", "search.final_seeds": "0", "search.pruner": "none",
    "search.sampler": "random", "trainer.max_epochs": "1", "trainer.limit_train_batches": "4", "logger": "none",
}  # fmt: skip
HALVES = ["search.pruner=asha", "search.rungs=2", "trainer.max_epochs=9", "trainer.limit_train_batches=2"]
"""Rungs behind the first and the third of nine epochs, each of two steps."""
LR = "optimizer.lr=tag(log,interval(1e-3,1e-2))"


@dataclass(frozen=True)
class Searched:
    """What a search has come to, and said."""

    code: int
    out: str
    err: str
    folder: Path

    @property
    def answer(self) -> dict[str, Any]:
        return json.loads((self.folder / "answer.json").read_text())

    @property
    def trials(self) -> list[dict[str, Any]]:
        return self.answer["trials"]

    def by(self, key: str) -> list[dict[str, Any]]:
        return sorted(self.trials, key=lambda each: each["params"][key])

    def came_to(self) -> list[tuple[Any, ...]]:
        return [tuple(each[key] for key in ("number", "state", "params", "values")) for each in self.trials]


Search = Callable[..., Searched]


def words_of(*words: str) -> list[str]:
    """A tiny search, but for what the words say otherwise."""
    given = {word.partition("=")[0] for word in words}
    return ["search", *(f"{key}={value}" for key, value in TINY.items() if key not in given), *words]


@pytest.fixture
def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Search:
    """``train.py search …`` in an empty folder; the worker is this process, and its trials are forked as ever."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    forked_command.prepare()  # before the search preloads less

    def run(*words: str) -> Searched:
        code = main(words_of(*words))
        told = capfd.readouterr()
        return Searched(code, told.out, told.err, tmp_path / "searches" / "mine")

    return run


@contextmanager
def worker_beside(folder: Path, *words: str) -> Iterator[BaseProcess]:
    """The same command as another process, with all that it starts in one group; gone in the end."""
    told = folder / "told_by_the_other"
    process = forked_command.start(words_of(*words), cwd=folder, env=os.environ, stdout=told, stderr=told)
    try:
        yield process
    finally:
        kill(process)
        process.join()


def kill(process: BaseProcess) -> None:
    """With all that it has started."""
    assert process.pid is not None
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def files_in(folder: Path) -> int:
    """How far a search has come, roughly."""
    return sum(len(files) for _, _, files in os.walk(folder))


def wait_for_some_moment(searches: Path, process: BaseProcess, most: int = 25) -> None:
    """Until a search has begun, or goes on, and has written some files more; or until nobody is left who could."""
    trials = searches / "mine" / "trials"
    before = files_in(trials)
    wait_for(lambda: files_in(trials) > before or has_ended(process))
    end = files_in(searches) + random.randrange(most)
    wait_for(lambda: files_in(searches) >= end or has_ended(process))


def has_ended(process: BaseProcess) -> bool:
    """With all that it has started."""
    if process.is_alive():  # asking takes note of its end, too: until then it counts as one of its group
        return False
    assert process.pid is not None
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return True
    return False


def state_of(run: Path) -> dict[str, Any]:
    return torch.load(max((run / "checkpoints").glob("*.ckpt")), weights_only=True)


def attempts_of(run: Path) -> list[dict[str, Any]]:
    return json.loads((run / "run.json").read_text())["attempts"]


@pytest.mark.slow
def test_a_search_ends_with_its_trials_and_an_honest_answer_and_then_prints_its_table_again(search: Search):
    words = ["search.trials=3", "activation=relu,elu", LR, "search.final_seeds=2"]
    done = search(*words)
    assert (done.code, done.err) == (0, "")
    answer = done.answer
    assert [each["state"] for each in answer["trials"]] == ["complete"] * 3
    losses = [each["values"][0] for each in answer["trials"]]
    assert answer["best"] == losses.index(min(losses))
    assert answer["final"]["seeds"] == [1, 2]
    assert len(answer["final"]["winner"]) == len(answer["final"]["default"]) == 2
    assert answer["totals"]["steps"] == 12
    assert f"The best trial is trial {answer['best']}, with val/loss " in done.out
    assert re.search(
        r"On 2 fresh seeds val/loss is \S+ with the winner and \S+ with the default, on average: ", done.out
    )
    assert "Random search with" not in done.out  # three random trials, which this search consists of
    assert (done.folder / "report.html").stat().st_size > 100_000
    # the test split is read once, for the winner
    assert [str(file.relative_to(done.folder)) for file in done.folder.rglob("predictions.npz")] == [
        f"test/trial-{answer['best']:04d}/predictions.npz"
    ]
    assert "The test split was read once, for the winner, by trials/" in done.out
    before = {file: file.stat().st_mtime_ns for file in done.folder.rglob("*.ckpt")}
    again = search(*words)
    assert (again.code, again.err) == (0, "")
    assert {file: file.stat().st_mtime_ns for file in done.folder.rglob("*.ckpt")} == before
    table = done.out[done.out.index("mine: trials, the best first") :]
    assert again.out == f"search searches/mine: 3 trials so far\n{table}"


@pytest.mark.slow
def test_a_trial_that_waited_and_went_on_has_the_weights_of_a_run_that_never_did(search: Search, command: Command):
    done = search("search.trials=3", LR, *HALVES)
    assert done.code == 0, done.err
    assert [each["state"] for each in done.trials].count("complete") == 1
    winner = done.trials[done.answer["best"]]
    waited = (done.folder / "logs" / f"trial-{winner['number']:04d}.log").read_text()
    assert "paused at rung 2 of 2 (step 6; the same command goes on from step 6)" in waited
    plain = command(*done.answer["words"]["winner"], "name=plain", "test=false")
    assert plain.returncode == 0, plain.stderr
    one, other = state_of(done.folder / winner["run"]), state_of(done.folder.parents[1] / "runs" / "plain")
    assert one["global_step"] == other["global_step"] == 18
    assert one["state_dict"].keys() == other["state_dict"].keys()
    assert all(torch.equal(one["state_dict"][name], weights) for name, weights in other["state_dict"].items())
    assert [each["curve"][-1][1] for each in done.trials if each["state"] == "pruned"] == [2, 2]


@pytest.mark.drill
def test_killed_and_told_to_end_it_comes_to_the_same_as_a_search_that_was_left_alone(search: Search, tmp_path: Path):
    words = ["search.trials=6", "activation=relu,elu", LR, *HALVES]
    alone = search(*words, "search.folder=alone")
    expected = Searched(0, "", "", tmp_path / "alone" / "mine").came_to()
    assert alone.code == 0, alone.err
    with worker_beside(tmp_path, *words) as process:
        wait_for_some_moment(tmp_path / "searches", process)
        kill(process)
        process.join()
        assert process.exitcode == -signal.SIGKILL
    with worker_beside(tmp_path, *words) as process:
        wait_for_some_moment(tmp_path / "searches", process)
        process.terminate()
        process.join(60)
        assert process.exitcode == 75
    assert "stormproof: stopped by SIGTERM; the same command goes on\n" in (tmp_path / "told_by_the_other").read_text()
    done = search(*words)
    assert done.code == 0, done.err
    assert done.came_to() == expected


@pytest.mark.drill
def test_two_workers_share_a_search_and_when_one_is_killed_the_other_takes_its_trial(search: Search, tmp_path: Path):
    words = ["search.trials=4", LR, "trainer.max_epochs=12"]
    trials = tmp_path / "searches" / "mine" / "trials"
    with worker_beside(tmp_path, *words) as other:
        wait_for(lambda: Lease.is_held(trials / "trial-0000"))
        trains = Lease.owner_of(trials / "trial-0000")
        assert trains is not None
        os.kill(trains.pid, signal.SIGSTOP)  # or all might be over before this worker has begun
        killing = threading.Thread(target=_kill_when_both_train, args=(other, trials))
        killing.start()
        done = search(*words)
        killing.join()
        other.join()
        assert other.exitcode == -signal.SIGKILL
    assert done.code == 0, done.err
    assert [(each["number"], each["state"]) for each in done.trials] == [(number, "complete") for number in range(4)]
    assert len({each["params"]["optimizer.lr"] for each in done.trials}) == 4
    assert {folder.name for folder in trials.iterdir()} == {f"trial-{number:04d}" for number in range(4)}
    assert sum(len(attempts_of(folder)) for folder in trials.iterdir()) <= 5


def _kill_when_both_train(other: BaseProcess, trials: Path) -> None:
    wait_for(lambda: len(list(trials.glob("*/lease.json"))) == 2)
    kill(other)


@pytest.mark.drill
def test_workers_that_the_command_starts_itself_do_the_trials_once_each(search: Search):
    done = search("search.workers=2", "search.trials=4", LR, "trainer.max_epochs=6")
    assert done.code == 0, done.err
    assert [each["state"] for each in done.trials] == ["complete"] * 4
    assert [len(attempts_of(folder)) for folder in (done.folder / "trials").iterdir()] == [1] * 4
    assert done.out.count("report: ") == 1


PICKY = """
import torch

class Picky(torch.nn.Sequential):
    def __init__(self, num_classes, kind: str = "good"):
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(64, num_classes))
        self.kind = kind

    def forward(self, inputs):
        if self.kind != "good" and inputs.any():  # the zeros that a network is tried with are none
            raise RuntimeError(f"{self.kind} it is")
        return super().forward(inputs)
"""


@pytest.fixture
def picky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "picky_network.py").write_text(PICKY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "picky_network", raising=False)
    return "model._target_=picky_network.Picky"


@pytest.mark.slow
def test_a_trial_that_fails_is_told_with_its_sentence_and_the_others_go_on(picky: str, search: Search):
    done = search(picky, "model.kind=bad,good", "search.sampler=grid", "search.trials=null")
    assert done.code == 0, done.err
    bad, good = done.by("model.kind")
    assert (bad["state"], bad["values"], good["state"]) == ("failed", None, "complete")
    assert bad["reason"] == "ended by RuntimeError: bad it is"
    assert f"trial {bad['number']} (model.kind=bad): failed: ended by RuntimeError: bad it is" in done.out
    assert done.answer["best"] == good["number"]
    assert "bad it is" in (done.folder / "report.html").read_text()
    assert done.answer["test"], done.answer["tested"]


@pytest.mark.slow
def test_too_many_that_fail_in_a_row_end_the_search(picky: str, search: Search, monkeypatch: pytest.MonkeyPatch):
    assert worker.FAILURES == 10
    monkeypatch.setattr(worker, "FAILURES", 3)
    done = search(picky, "model.kind=bad0,bad1,bad2,bad3,bad4", "search.sampler=grid", "search.trials=null")
    assert done.code == 2
    assert re.fullmatch(
        r"stormproof: 3 trials in a row failed, the last one \(model.kind=(bad\d)\) by: "
        r"ended by RuntimeError: \1 it is\n",
        done.err,
    )
    assert len(list((done.folder / "logs").glob("trial-*"))) == 3


@pytest.mark.slow
def test_what_is_critical_ends_a_trial_with_its_reason(search: Search):
    done = search("optimizer.lr=1.0,2.0", "search.sampler=grid", "search.trials=null")
    told = "no trial has come to its end (2 pruned): the table says why"
    assert (done.code, done.err) == (2, f"stormproof: {told}\n")
    assert [each["state"] for each in done.trials] == ["pruned", "pruned"]
    assert all(each["reason"].startswith("critical: ") for each in done.trials), done.trials
    assert done.answer["best"] is None


@pytest.mark.slow
def test_another_space_under_the_same_name_is_refused_with_the_difference_and_more_trials_are_not(search: Search):
    assert search(LR, "search.trials=1").code == 0
    other = search(LR, "model.dropout=0.1,0.2", "seed=3", "search.trials=1")
    assert other.code == 2
    assert other.err == (
        "stormproof: the search searches/mine is another one: seed: 0 -> 3; model.dropout: (not searched) -> 0.1,0.2. "
        "Give this one another name (search.name=…)\n"
    )
    more = search(LR, "search.trials=2")
    assert more.code == 0, more.err
    assert [each["state"] for each in more.trials] == ["complete", "complete"]


@pytest.mark.slow
def test_a_budget_ends_a_search(search: Search):
    done = search(LR, "search.trials=20", "search.max_steps=5")
    assert done.code == 0, done.err
    assert [each["steps"] for each in done.trials] == [4, 4]
    assert done.answer["totals"]["steps"] == 8


@pytest.mark.slow
def test_a_network_that_is_too_large_is_not_trained_and_another_one_wins(search: Search):
    done = search("model.width=64,8", "search.sampler=grid", "search.constraints='parameters<=2000'")
    assert done.code == 0, done.err
    large, small = done.by("model.width")
    assert (small["state"], small["feasible"], large["state"], large["steps"]) == ("complete", True, "pruned", 0)
    assert re.fullmatch(r"parameters<=2000 does not hold: it is [\d,]+", large["reason"])
    assert done.answer["best"] == small["number"]


@pytest.mark.slow
def test_several_objectives_give_a_front(search: Search):
    objectives = "search.objectives=[val/loss,parameters,latency]"
    done = search("model.width=64,8", "search.sampler=grid", "search.pruner=null", objectives)
    assert done.code == 0, done.err
    wide, narrow = done.by("model.width")
    assert narrow["values"][1] < wide["values"][1]
    assert all(0 < each["values"][2] < 1 for each in (narrow, wide))
    assert narrow["number"] in done.answer["front"]
    assert done.answer["best"] == min(done.answer["front"], key=lambda number: done.trials[number]["values"][0])


@pytest.mark.slow
def test_a_grid_is_done_once_and_what_is_asked_for_twice_is_trained_once(search: Search):
    done = search("model.depth=1,2", "search.sampler=grid", "search.trials=null")
    assert done.code == 0, done.err
    assert [each["params"] for each in done.by("model.depth")] == [{"model.depth": "1"}, {"model.depth": "2"}]
    again = search("model.depth=1,2", "search.name=random", "search.trials=9")
    assert again.code == 0, again.err
    trials = Searched(0, "", "", done.folder.with_name("random")).trials
    assert sorted(each["params"]["model.depth"] for each in trials) == ["1", "2"]


@pytest.mark.slow
def test_the_runs_of_a_search_are_one_group_in_wandb(search: Search):
    done = search(LR, "search.trials=1", "logger=wandb")
    assert done.code == 0, done.err
    (file,) = done.folder.glob("trials/trial-0000/wandb/offline-run-*/run-*.wandb")
    assert RunRecord(run_group="mine").SerializeToString() in file.read_bytes()


MISTAKES = [
    (["activation=relu"], "nothing is searched: give a setting several values"),
    ([LR, "callbacks=none"], "a trial that was interrupted goes on by stormproof.CheckpointRecovery: put it among"),
    ([LR, "trainer.num_nodes=2"], "trainer.num_nodes: a trial runs on one node"),
    ([LR, "search.sampler=grid"], "search.sampler=grid: optimizer.lr is an interval, and a grid needs values"),
    (["activation=relu,elo"], "there is no activation=elo"),
    ([LR, "search.folder=/dev/null/x"], "search.folder=/dev/null/x: the search's folder cannot be made there"),
    ([LR, "search.storage=nonsense"], "search.storage cannot be used"),
]


@pytest.mark.parametrize(("words", "told"), slow_except(MISTAKES, MISTAKES[:2]))
def test_a_mistake_is_one_sentence_before_anything_is_trained(words: list[str], told: str, search: Search):
    done = search(*words)
    assert done.code == 2
    assert len(done.err.splitlines()) == 1, done.err
    assert told in done.err
    assert not list(done.folder.rglob("*.ckpt"))


def test_ranks_of_a_launcher_are_refused(search: Search, monkeypatch: pytest.MonkeyPatch):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    done = search(LR)
    assert done.code == 2
    assert "a search starts the ranks of its trials itself: leave torchrun or srun out" in done.err


@pytest.mark.drill
@pytest.mark.timeout(1800)
def test_thirty_kills_of_its_processes_lose_no_trial_and_at_most_an_interval_of_work_each(
    search: Search, tmp_path: Path
):
    """A kill strikes all processes, or one of them and those that are left a moment later.

    A trial writes fifteen files or so, and a kill waits for 25 and a few: the search lasts until all have struck.
    """
    kills, interval = max(4, 30 // EVERY), 4
    trials = 2 * kills + 1
    words = [f"search.trials={trials}", LR, *HALVES, f"callbacks.recovery.every_n_train_steps={interval}"]
    left_alone = search(*words, "search.pruner=none", "search.folder=alone")
    expected = {each["number"]: each for each in Searched(0, "", "", tmp_path / "alone" / "mine").trials}
    assert left_alone.code == 0, left_alone.err
    struck, too_early = 0, "the search has ended before all kills have struck"
    while struck < kills:
        with worker_beside(tmp_path, *words, "search.workers=2") as process:
            wait_for_some_moment(tmp_path / "searches", process)
            assert process.is_alive(), too_early
            if struck + 1 < kills and random.random() < 0.5:
                worker = psutil.Process(process.pid)
                one = random.choice([worker, *worker.children(recursive=True)])
                with suppress(psutil.NoSuchProcess):
                    one.kill()
                    struck += 1
                wait_for_some_moment(tmp_path / "searches", process, most=5)
                assert process.is_alive() or one == worker, too_early
            kill(process)
            struck += 1
    done = search(*words)
    assert done.code == 0, done.err
    assert [each["number"] for each in done.trials] == list(range(trials))
    assert {each["state"] for each in done.trials} == {"complete", "pruned"}
    assert [each["params"] for each in done.trials] == [each["params"] for each in expected.values()]
    complete = [each for each in done.trials if each["state"] == "complete"]
    assert [each["values"] for each in complete] == [expected[each["number"]]["values"] for each in complete]
    runs = list((done.folder / "trials").iterdir())
    assert {run.name for run in runs} == {f"trial-{number:04d}" for number in range(trials)}
    rows = [row for run in runs for row in read_rows(run / "metrics.csv") if row.name == "recovery/lost_steps"]
    assert max(row.value for row in rows) <= interval
