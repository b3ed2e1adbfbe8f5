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
from stormproof_train.run.metrics_rows import read_rows
from stormproof_train.search import worker
from tests.support import forked_command
from tests.support.cases import DRILL_STRIDE, slow_except
from tests.support.forked_command import Command
from tests.support.waiting import wait_for

TINY_SEARCH = {
    "search.name": "mine", "search.trials": "2", "search.final_seeds": "0", "search.pruner": "none",
    "search.sampler": "random", "trainer.max_epochs": "1", "trainer.limit_train_batches": "4", "logger": "none",
}  # fmt: skip
HALVING_OVERRIDES = ["search.pruner=asha", "search.rungs=2", "trainer.max_epochs=9", "trainer.limit_train_batches=2"]
"""Rungs behind the first and the third of nine epochs, each of two steps."""
LR_SPACE = "optimizer.lr=tag(log,interval(1e-3,1e-2))"


@dataclass(frozen=True)
class SearchResult:
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

    def sorted_by(self, key: str) -> list[dict[str, Any]]:
        return sorted(self.trials, key=lambda trial: trial["params"][key])

    def trial_results(self) -> list[tuple[Any, ...]]:
        return [tuple(trial[key] for key in ("number", "state", "params", "values")) for trial in self.trials]


Search = Callable[..., SearchResult]


def search_arguments(*overrides: str) -> list[str]:
    """A tiny search, but for what the words say otherwise."""
    given_keys = {word.partition("=")[0] for word in overrides}
    return ["search", *(f"{key}={value}" for key, value in TINY_SEARCH.items() if key not in given_keys), *overrides]


@pytest.fixture
def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Search:
    """``train.py search …`` in an empty folder; the worker is this process, and its trials are forked as ever."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    forked_command.start_fork_server()  # before the search preloads less

    def run(*overrides: str) -> SearchResult:
        code = main(search_arguments(*overrides))
        captured = capfd.readouterr()
        return SearchResult(code, captured.out, captured.err, tmp_path / "searches" / "mine")

    return run


@contextmanager
def start_second_worker(folder: Path, *overrides: str) -> Iterator[BaseProcess]:
    """The same command as another process, with all that it starts in one group; gone in the end."""
    output_file = folder / "told_by_the_other"
    process = forked_command.start(
        search_arguments(*overrides), cwd=folder, env=os.environ, stdout=output_file, stderr=output_file
    )
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


def count_files(folder: Path) -> int:
    """How far a search has come, roughly."""
    return sum(len(files) for _, _, files in os.walk(folder))


def wait_for_random_moment(searches: Path, process: BaseProcess, most: int = 25) -> None:
    """Until a search has begun, or goes on, and has written some files more; or until nobody is left who could."""
    trials = searches / "mine" / "trials"
    before = count_files(trials)
    wait_for(lambda: count_files(trials) > before or has_ended(process))
    file_count = count_files(searches) + random.randrange(most)
    wait_for(lambda: count_files(searches) >= file_count or has_ended(process))


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


def load_checkpoint(run: Path) -> dict[str, Any]:
    return torch.load(max((run / "checkpoints").glob("*.ckpt")), weights_only=True)


def read_attempts(run: Path) -> list[dict[str, Any]]:
    return json.loads((run / "run.json").read_text())["attempts"]


@pytest.mark.slow
def test_a_search_ends_with_its_trials_and_an_honest_answer_and_then_prints_its_table_again(search: Search):
    overrides = ["search.trials=3", "activation=relu,elu", LR_SPACE, "search.final_seeds=2"]
    result = search(*overrides)
    assert (result.code, result.err) == (0, "")
    answer = result.answer
    assert [trial["state"] for trial in answer["trials"]] == ["complete"] * 3
    losses = [trial["values"][0] for trial in answer["trials"]]
    assert answer["best"] == losses.index(min(losses))
    assert answer["final"]["seeds"] == [1, 2]
    assert len(answer["final"]["winner"]) == len(answer["final"]["default"]) == 2
    assert answer["totals"]["steps"] == 12
    assert f"The best trial is trial {answer['best']}, with val/loss " in result.out
    assert re.search(
        r"On 2 fresh seeds, the mean val/loss is \S+ with the winner and \S+ with the default: ", result.out
    )
    assert "Random search with" not in result.out  # three random trials, which this search consists of
    assert (result.folder / "report.html").stat().st_size > 100_000
    # the test split is read once, for the winner
    assert [str(file.relative_to(result.folder)) for file in result.folder.rglob("predictions.npz")] == [
        f"test/trial-{answer['best']:04d}/predictions.npz"
    ]
    assert "The test split was used once, for the winner, by trials/" in result.out
    before = {file: file.stat().st_mtime_ns for file in result.folder.rglob("*.ckpt")}
    rerun = search(*overrides)
    assert (rerun.code, rerun.err) == (0, "")
    assert {file: file.stat().st_mtime_ns for file in result.folder.rglob("*.ckpt")} == before
    table = result.out[result.out.index("mine: trials, best first") :]
    assert rerun.out == f"search searches/mine: 3 trials so far\n{table}"


@pytest.mark.slow
def test_a_trial_that_waited_and_went_on_has_the_weights_of_a_run_that_never_did(search: Search, command: Command):
    result = search("search.trials=3", LR_SPACE, *HALVING_OVERRIDES)
    assert result.code == 0, result.err
    assert [trial["state"] for trial in result.trials].count("complete") == 1
    winner = result.trials[result.answer["best"]]
    waited = (result.folder / "logs" / f"trial-{winner['number']:04d}.log").read_text()
    assert "paused at rung 2 of 2 (step 6; the same command resumes from step 6)" in waited
    plain = command(*result.answer["overrides"]["winner"], "name=plain", "test=false")
    assert plain.returncode == 0, plain.stderr
    paused_state, plain_state = (
        load_checkpoint(result.folder / winner["run"]),
        load_checkpoint(result.folder.parents[1] / "runs" / "plain"),
    )
    assert paused_state["global_step"] == plain_state["global_step"] == 18
    assert paused_state["state_dict"].keys() == plain_state["state_dict"].keys()
    assert all(
        torch.equal(paused_state["state_dict"][name], weights) for name, weights in plain_state["state_dict"].items()
    )
    assert [trial["curve"][-1][1] for trial in result.trials if trial["state"] == "pruned"] == [2, 2]


@pytest.mark.drill
def test_killed_and_told_to_end_it_comes_to_the_same_as_a_search_that_was_left_alone(search: Search, tmp_path: Path):
    overrides = ["search.trials=6", "activation=relu,elu", LR_SPACE, *HALVING_OVERRIDES]
    alone = search(*overrides, "search.folder=alone")
    expected = SearchResult(0, "", "", tmp_path / "alone" / "mine").trial_results()
    assert alone.code == 0, alone.err
    with start_second_worker(tmp_path, *overrides) as process:
        wait_for_random_moment(tmp_path / "searches", process)
        kill(process)
        process.join()
        assert process.exitcode == -signal.SIGKILL
    with start_second_worker(tmp_path, *overrides) as process:
        wait_for_random_moment(tmp_path / "searches", process)
        process.terminate()
        process.join(60)
        assert process.exitcode == 75
    assert (
        "stormproof: stopped by SIGTERM; the same command resumes the search\n"
        in (tmp_path / "told_by_the_other").read_text()
    )
    result = search(*overrides)
    assert result.code == 0, result.err
    assert result.trial_results() == expected


@pytest.mark.drill
def test_two_workers_share_a_search_and_when_one_is_killed_the_other_takes_its_trial(search: Search, tmp_path: Path):
    overrides = ["search.trials=4", LR_SPACE, "trainer.max_epochs=12"]
    trials = tmp_path / "searches" / "mine" / "trials"
    with start_second_worker(tmp_path, *overrides) as second_worker:
        wait_for(lambda: Lease.is_active(trials / "trial-0000"))
        trains = Lease.read_owner(trials / "trial-0000")
        assert trains is not None
        os.kill(trains.pid, signal.SIGSTOP)  # or all might be over before this worker has begun
        killing = threading.Thread(target=_kill_when_both_workers_train, args=(second_worker, trials))
        killing.start()
        result = search(*overrides)
        killing.join()
        second_worker.join()
        assert second_worker.exitcode == -signal.SIGKILL
    assert result.code == 0, result.err
    assert [(trial["number"], trial["state"]) for trial in result.trials] == [
        (number, "complete") for number in range(4)
    ]
    assert len({trial["params"]["optimizer.lr"] for trial in result.trials}) == 4
    assert {folder.name for folder in trials.iterdir()} == {f"trial-{number:04d}" for number in range(4)}
    assert sum(len(read_attempts(folder)) for folder in trials.iterdir()) <= 5


def _kill_when_both_workers_train(other_worker: BaseProcess, trials: Path) -> None:
    wait_for(lambda: len(list(trials.glob("*/lease.json"))) == 2)
    kill(other_worker)


@pytest.mark.drill
def test_workers_that_the_command_starts_itself_do_the_trials_once_each(search: Search):
    result = search("search.workers=2", "search.trials=4", LR_SPACE, "trainer.max_epochs=6")
    assert result.code == 0, result.err
    assert [trial["state"] for trial in result.trials] == ["complete"] * 4
    assert [len(read_attempts(folder)) for folder in (result.folder / "trials").iterdir()] == [1] * 4
    assert result.out.count("report: ") == 1


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
    result = search(picky, "model.kind=bad,good", "search.sampler=grid", "search.trials=null")
    assert result.code == 0, result.err
    bad, good = result.sorted_by("model.kind")
    assert (bad["state"], bad["values"], good["state"]) == ("failed", None, "complete")
    assert bad["reason"] == "ended by RuntimeError: bad it is"
    assert f"trial {bad['number']} (model.kind=bad): failed: ended by RuntimeError: bad it is" in result.out
    assert result.answer["best"] == good["number"]
    assert "bad it is" in (result.folder / "report.html").read_text()
    assert result.answer["test"], result.answer["tested"]


@pytest.mark.slow
def test_too_many_that_fail_in_a_row_end_the_search(picky: str, search: Search, monkeypatch: pytest.MonkeyPatch):
    assert worker.MAX_CONSECUTIVE_FAILURES == 10
    monkeypatch.setattr(worker, "MAX_CONSECUTIVE_FAILURES", 3)
    result = search(picky, "model.kind=bad0,bad1,bad2,bad3,bad4", "search.sampler=grid", "search.trials=null")
    assert result.code == 2
    assert re.fullmatch(
        r"stormproof: 3 consecutive trials failed, the last one \(model.kind=(bad\d)\) with: "
        r"ended by RuntimeError: \1 it is\n",
        result.err,
    )
    assert len(list((result.folder / "logs").glob("trial-*"))) == 3


@pytest.mark.slow
def test_what_is_critical_ends_a_trial_with_its_reason(search: Search):
    result = search("optimizer.lr=1.0,2.0", "search.sampler=grid", "search.trials=null")
    message = "no trial has completed (2 pruned): see the reasons in the table"
    assert (result.code, result.err) == (2, f"stormproof: {message}\n")
    assert [trial["state"] for trial in result.trials] == ["pruned", "pruned"]
    assert all(trial["reason"].startswith("critical: ") for trial in result.trials), result.trials
    assert result.answer["best"] is None


@pytest.mark.slow
def test_another_space_under_the_same_name_is_refused_with_the_difference_and_more_trials_are_not(search: Search):
    assert search(LR_SPACE, "search.trials=1").code == 0
    other_space = search(LR_SPACE, "model.dropout=0.1,0.2", "seed=3", "search.trials=1")
    assert other_space.code == 2
    assert other_space.err == (
        "stormproof: the folder searches/mine belongs to a search with other settings: seed: 0 -> 3; "
        "model.dropout: (not searched) -> 0.1,0.2. Choose another name (search.name=…)\n"
    )
    more_trials = search(LR_SPACE, "search.trials=2")
    assert more_trials.code == 0, more_trials.err
    assert [trial["state"] for trial in more_trials.trials] == ["complete", "complete"]


@pytest.mark.slow
def test_a_budget_ends_a_search(search: Search):
    result = search(LR_SPACE, "search.trials=20", "search.max_steps=5")
    assert result.code == 0, result.err
    assert [trial["steps"] for trial in result.trials] == [4, 4]
    assert result.answer["totals"]["steps"] == 8


@pytest.mark.slow
def test_a_network_that_is_too_large_is_not_trained_and_another_one_wins(search: Search):
    result = search("model.width=64,8", "search.sampler=grid", "search.constraints='parameters<=2000'")
    assert result.code == 0, result.err
    large, small = result.sorted_by("model.width")
    assert (small["state"], small["feasible"], large["state"], large["steps"]) == ("complete", True, "pruned", 0)
    assert re.fullmatch(r"parameters<=2000 is violated: it is [\d,]+", large["reason"])
    assert result.answer["best"] == small["number"]


@pytest.mark.slow
def test_several_objectives_give_a_front(search: Search):
    objectives = "search.objectives=[val/loss,parameters,latency]"
    result = search("model.width=64,8", "search.sampler=grid", "search.pruner=null", objectives)
    assert result.code == 0, result.err
    wide, narrow = result.sorted_by("model.width")
    assert narrow["values"][1] < wide["values"][1]
    assert all(0 < trial["values"][2] < 1 for trial in (narrow, wide))
    assert narrow["number"] in result.answer["front"]
    assert result.answer["best"] == min(result.answer["front"], key=lambda number: result.trials[number]["values"][0])


@pytest.mark.slow
def test_a_grid_is_done_once_and_what_is_asked_for_twice_is_trained_once(search: Search):
    result = search("model.depth=1,2", "search.sampler=grid", "search.trials=null")
    assert result.code == 0, result.err
    assert [trial["params"] for trial in result.sorted_by("model.depth")] == [
        {"model.depth": "1"},
        {"model.depth": "2"},
    ]
    rerun = search("model.depth=1,2", "search.name=random", "search.trials=9")
    assert rerun.code == 0, rerun.err
    trials = SearchResult(0, "", "", result.folder.with_name("random")).trials
    assert sorted(trial["params"]["model.depth"] for trial in trials) == ["1", "2"]


@pytest.mark.slow
def test_the_runs_of_a_search_are_one_group_in_wandb(search: Search):
    result = search(LR_SPACE, "search.trials=1", "logger=wandb")
    assert result.code == 0, result.err
    (file,) = result.folder.glob("trials/trial-0000/wandb/offline-run-*/run-*.wandb")
    assert RunRecord(run_group="mine").SerializeToString() in file.read_bytes()


MISTAKES = [
    (["activation=relu"], "there is nothing to search: give a setting several values"),
    (
        [LR_SPACE, "callbacks=none"],
        "search needs stormproof.CheckpointRecovery to resume interrupted trials",
    ),
    ([LR_SPACE, "trainer.num_nodes=2"], "trainer.num_nodes must be 1 in a search"),
    ([LR_SPACE, "search.sampler=grid"], "search.sampler=grid: optimizer.lr is an interval. A grid needs values"),
    (["activation=relu,elo"], "activation=elo does not exist"),
    (
        [LR_SPACE, "search.folder=/dev/null/x"],
        "search.folder=/dev/null/x: the folder of the search cannot be created there",
    ),
    ([LR_SPACE, "search.storage=nonsense"], "search.storage cannot be used"),
]


@pytest.mark.parametrize(("words", "told"), slow_except(MISTAKES, MISTAKES[:2]))
def test_a_mistake_is_one_sentence_before_anything_is_trained(words: list[str], told: str, search: Search):
    result = search(*words)
    assert result.code == 2
    assert len(result.err.splitlines()) == 1, result.err
    assert told in result.err
    assert not list(result.folder.rglob("*.ckpt"))


def test_ranks_of_a_launcher_are_refused(search: Search, monkeypatch: pytest.MonkeyPatch):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    result = search(LR_SPACE)
    assert result.code == 2
    assert "search starts the ranks of its trials. Run it without torchrun or srun" in result.err


@pytest.mark.drill
@pytest.mark.timeout(1800)
def test_thirty_kills_of_its_processes_lose_no_trial_and_at_most_an_interval_of_work_each(
    search: Search, tmp_path: Path
):
    """A kill strikes all processes, or one of them and those that are left a moment later.

    A trial writes fifteen files or so, and a kill waits for 25 and a few: the search lasts until all have struck.
    """
    kills, interval = max(4, 30 // DRILL_STRIDE), 4
    trials = 2 * kills + 1
    overrides = [
        f"search.trials={trials}",
        LR_SPACE,
        *HALVING_OVERRIDES,
        f"callbacks.recovery.every_n_train_steps={interval}",
    ]
    left_alone = search(*overrides, "search.pruner=none", "search.folder=alone")
    expected = {trial["number"]: trial for trial in SearchResult(0, "", "", tmp_path / "alone" / "mine").trials}
    assert left_alone.code == 0, left_alone.err
    struck, too_early = 0, "the search has ended before all kills have struck"
    while struck < kills:
        with start_second_worker(tmp_path, *overrides, "search.workers=2") as process:
            wait_for_random_moment(tmp_path / "searches", process)
            assert process.is_alive(), too_early
            if struck + 1 < kills and random.random() < 0.5:
                worker = psutil.Process(process.pid)
                victim = random.choice([worker, *worker.children(recursive=True)])
                with suppress(psutil.NoSuchProcess):
                    victim.kill()
                    struck += 1
                wait_for_random_moment(tmp_path / "searches", process, most=5)
                assert process.is_alive() or victim == worker, too_early
            kill(process)
            struck += 1
    result = search(*overrides)
    assert result.code == 0, result.err
    assert [trial["number"] for trial in result.trials] == list(range(trials))
    assert {trial["state"] for trial in result.trials} == {"complete", "pruned"}
    assert [trial["params"] for trial in result.trials] == [trial["params"] for trial in expected.values()]
    complete = [trial for trial in result.trials if trial["state"] == "complete"]
    assert [trial["values"] for trial in complete] == [expected[trial["number"]]["values"] for trial in complete]
    runs = list((result.folder / "trials").iterdir())
    assert {run.name for run in runs} == {f"trial-{number:04d}" for number in range(trials)}
    rows = [row for run in runs for row in read_rows(run / "metrics.csv") if row.name == "recovery/lost_steps"]
    assert max(row.value for row in rows) <= interval
