"""scripts/torchrun.sh: workers, nodes and cables fail, and training goes on by itself.

What is read is what stays: run.json and the weights.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from stormproof.checkpoint import Store, load_checkpoint
from tests.cluster.nodes import ADDRESSES, Nodes
from tests.support.forked_command import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

SCRIPT = str(ROOT / "scripts" / "torchrun.sh")
WORDS = (
    "trainer=ddp", "trainer.accelerator=cpu", "trainer.max_epochs=15", "callbacks.recovery.every_n_train_steps=5",
    "callbacks.slow._target_=mine.Slow", "name=run", "logger=none",
)  # fmt: skip
STEPS = 300
MINE = """
import os, time
from pytorch_lightning import Callback

class Slow(Callback):
    def on_train_batch_start(self, *args):
        if not os.path.exists(os.environ["FAST_FILE"]):  # created by a test after its last fault
            time.sleep(float(os.environ["SECONDS_A_BATCH"]))
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of two ranks that nothing happened to."""
    return train_uninterrupted(tmp_path_factory.mktemp("whole"), WORDS)


def train_uninterrupted(folder: Path, words: Sequence[str]) -> dict[str, torch.Tensor]:
    overrides = [word for word in words if "slow" not in word]
    command = [sys.executable, str(ROOT / "train.py"), *overrides, "trainer.devices=2"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=200)
    return load_weights(folder)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    both_nodes = Nodes()
    try:
        yield both_nodes
    finally:
        both_nodes.remove()


def start_agent(
    both_nodes: Nodes, node: int, here: Path, *arguments: str, seconds: float = 0.12, words: Sequence[str] = WORDS
) -> subprocess.Popen[bytes]:
    env = os.environ | {
        "SECONDS_A_BATCH": str(seconds), "FAST_FILE": str(here / "fast"),
        "NODES": "1:2", "PROCESSES": "1", "RENDEZVOUS": f"{ADDRESSES[0]}:29400", "IS_HOST": str(node == 0).lower(),
        "ADDRESS": ADDRESSES[node], "GLOO_SOCKET_IFNAME": "cable",
    }  # fmt: skip
    return both_nodes.start(node, [SCRIPT, *words, *arguments], here, env)


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    newest = Store(folder / "runs" / "run" / "checkpoints").latest_checkpoint()
    assert newest is not None
    checkpoint = load_checkpoint(newest.path)
    assert checkpoint["global_step"] == STEPS
    return checkpoint["state_dict"]


def read_record(folder: Path) -> dict[str, Any]:
    file = folder / "runs" / "run" / "run.json"
    return json.loads(file.read_text()) if file.exists() else {"status": None, "attempts": []}


def read_ranks(folder: Path) -> list[int]:
    """Of each attempt that trained."""
    return [attempt["ranks"] for attempt in read_record(folder)["attempts"] if attempt["ranks"]]


def wait_for_training(folder: Path, by: list[int], beyond: int = 0) -> Callable[[], bool]:
    """Whether the attempts had so many ranks, and there is a checkpoint of a later step."""

    def reached() -> bool:
        store = folder / "runs" / "run" / "checkpoints"
        newest = (
            max((checkpoint.step for checkpoint in Store(store).read_checkpoints()), default=0) if store.exists() else 0
        )
        return read_ranks(folder) == by and newest > beyond

    return reached


def wait_until(reached: Callable[[], bool], seconds: float, here: Path) -> float:
    """Waits; the seconds that it took."""
    start_time = time.monotonic()
    while not reached():
        logs = [file.read_text(errors="replace")[-3000:] for file in here.glob("node*.txt")]
        assert time.monotonic() - start_time < seconds, "\n".join([json.dumps(read_record(here)), *logs])
        time.sleep(0.1)
    return time.monotonic() - start_time


def has_copies(both_nodes: Nodes) -> list[bool]:
    """Whether each node has a copy of the state in its memory."""
    return [any(path.suffix == ".json" for path in both_nodes.list_memory(node)) for node in (0, 1)]


def latest_step(folder: Path) -> int:
    return max(checkpoint.step for checkpoint in Store(folder / "runs" / "run" / "checkpoints").read_checkpoints())


def weight_distance(first_weights: dict[str, torch.Tensor], second_weights: dict[str, torch.Tensor]) -> float:
    """Of all weights, relative to their size: an epoch's last batch is divided otherwise, and rounding grows."""
    first, second = (
        torch.cat([value.flatten() for value in state_dict.values()]) for state_dict in (first_weights, second_weights)
    )
    return float((first - second).norm() / second.norm())


def test_a_worker_that_is_killed_is_started_again_and_the_weights_are_the_same_to_the_last_bit(
    here: Path, whole: dict[str, torch.Tensor]
):
    env = os.environ | {"PROCESSES": "2", "SECONDS_A_BATCH": "0.12", "FAST_FILE": str(here / "fast")}
    with (here / "node0.txt").open("wb") as output:
        agent = subprocess.Popen([SCRIPT, *WORDS], cwd=here, env=env, stdout=output, stderr=output)
        try:
            for times in (1, 2):
                wait_until(wait_for_training(here, [2] * times, beyond=40 * times), 90, here)
                worker = psutil.Process(agent.pid).children()[times - 1]
                worker.send_signal(signal.SIGKILL)
            (here / "fast").touch()
            assert agent.wait(timeout=120) == 0
        finally:
            for process in [*psutil.Process(agent.pid).children(recursive=True), agent] if agent.poll() is None else []:
                process.kill()
    assert read_record(here)["status"] == "finished"
    assert read_ranks(here) == [2, 2, 2]
    assert all(torch.equal(value, whole[name]) for name, value in load_weights(here).items())


def test_a_node_dies_the_other_goes_on_alone_and_both_once_it_is_back(
    nodes: Nodes, here: Path, whole: dict[str, torch.Tensor]
):
    first, second = start_agent(nodes, 0, here), start_agent(nodes, 1, here)
    wait_until(wait_for_training(here, [2], beyond=20), 90, here)
    nodes.kill(1)
    wait_until(wait_for_training(here, [2, 1], beyond=latest_step(here)), 90, here)
    second.wait(timeout=10)
    second = start_agent(nodes, 1, here)
    wait_until(wait_for_training(here, [2, 1, 2], beyond=latest_step(here)), 90, here)
    (here / "fast").touch()
    assert first.wait(timeout=120) == 0
    assert second.wait(timeout=30) == 0
    assert read_record(here)["status"] == "finished"
    assert read_ranks(here) == [2, 1, 2]
    assert weight_distance(load_weights(here), whole) < 0.05


def test_the_node_of_the_rendezvous_dies_all_end_and_started_again_they_lose_no_bit(
    nodes: Nodes, here: Path, whole: dict[str, torch.Tensor]
):
    start_agent(nodes, 0, here)
    second = start_agent(nodes, 1, here)
    wait_until(wait_for_training(here, [2], beyond=20), 90, here)
    nodes.kill(0)
    assert second.wait(timeout=120) != 0
    assert nodes.pids(1) == []
    (here / "fast").touch()
    repeated = [start_agent(nodes, node, here) for node in (0, 1)]
    assert [agent.wait(timeout=150) for agent in repeated] == [0, 0]
    assert read_ranks(here) == [2, 2]
    assert all(torch.equal(value, whole[name]) for name, value in load_weights(here).items())


def test_a_run_that_lost_the_node_of_rank_0_resumes_from_the_memory_of_the_other_node(
    nodes: Nodes, here: Path, whole: dict[str, torch.Tensor]
):
    resume_from_memory_of_node_1(nodes, here, WORDS, whole)


def test_a_run_that_lost_the_shards_of_rank_0_resumes_from_the_memory_of_the_other_node(
    nodes: Nodes, here: Path, tmp_path_factory: pytest.TempPathFactory
):
    words = [word.replace("trainer=ddp", "trainer=fsdp") for word in WORDS]
    resume_from_memory_of_node_1(nodes, here, words, train_uninterrupted(tmp_path_factory.mktemp("whole"), words))


def resume_from_memory_of_node_1(nodes: Nodes, here: Path, words: Sequence[str], whole: dict[str, torch.Tensor]):
    memory_overrides = ("callbacks.recovery.every_n_train_steps=100000", "callbacks.recovery.memory_tier=true")
    _, second = [start_agent(nodes, node, here, *memory_overrides, words=words) for node in (0, 1)]
    wait_until(lambda: has_copies(nodes) == [True, True], 90, here)
    nodes.kill(0)
    second.kill()  # the scheduler starts the job again
    wait_until(lambda: not nodes.pids(1), 60, here)
    (here / "fast").touch()
    repeated = [start_agent(nodes, node, here, *memory_overrides, words=words) for node in (0, 1)]
    assert [agent.wait(timeout=150) for agent in repeated] == [0, 0]
    attempts = Store(here / "runs" / "run" / "checkpoints").read_attempts()
    assert attempts[1].step > 0
    assert all(torch.equal(value, whole[name]) for name, value in load_weights(here).items())
    assert [nodes.list_memory(node) for node in (0, 1)] == [[], []]


def test_an_agent_dies_and_its_workers_do_not_go_on_without_it(
    nodes: Nodes, here: Path, whole: dict[str, torch.Tensor]
):
    first, second = start_agent(nodes, 0, here), start_agent(nodes, 1, here)
    wait_until(wait_for_training(here, [2], beyond=20), 90, here)
    second.kill()
    wait_until(lambda: not nodes.pids(1), 60, here)
    wait_until(wait_for_training(here, [2, 1], beyond=latest_step(here)), 90, here)
    second = start_agent(nodes, 1, here)
    wait_until(wait_for_training(here, [2, 1, 2], beyond=latest_step(here)), 90, here)
    (here / "fast").touch()
    assert first.wait(timeout=120) == 0
    assert second.wait(timeout=30) == 0
    assert read_record(here)["attempts"][0]["reason"].startswith("stopped by SIGTERM")
    assert weight_distance(load_weights(here), whole) < 0.05


def test_a_cable_is_pulled_the_first_node_goes_on_alone_and_both_once_it_is_back(
    nodes: Nodes, here: Path, whole: dict[str, torch.Tensor]
):
    impatient, slow = "callbacks.hang_watch.timeout_seconds=10", 0.25
    first, second = (start_agent(nodes, node, here, impatient, seconds=slow) for node in (0, 1))
    wait_until(wait_for_training(here, [2], beyond=20), 90, here)
    nodes.set_cable("down")
    wait_until(wait_for_training(here, [2, 1], beyond=latest_step(here)), 120, here)
    nodes.set_cable("up")
    both = wait_for_training(here, [2, 1, 2], beyond=latest_step(here))

    def back() -> bool:
        nonlocal second
        if second.poll() not in {None, 0}:  # its agent may have given up: whoever started it does so again
            second = start_agent(nodes, 1, here, impatient, seconds=slow)
        return both()

    wait_until(back, 150, here)
    (here / "fast").touch()
    assert first.wait(timeout=120) == 0
    assert second.wait(timeout=30) == 0
    assert read_record(here)["attempts"][0]["reason"].startswith("hang: ")
    assert weight_distance(load_weights(here), whole) < 0.05
