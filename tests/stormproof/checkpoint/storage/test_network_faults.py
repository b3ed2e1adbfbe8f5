"""Commits through a proxy that cuts, delays and refuses requests to an S3 server."""

import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from stormproof.checkpoint import CommitInfo, Retention, Store
from stormproof.checkpoint.lease import Lease, Owner
from stormproof.checkpoint.storage import ObjectStorage, OutcomeUnknownError, object_store
from stormproof.errors import FolderLostError, FolderTakenError, RanksDisagreeError
from tests.support.checkpoint_files import commit_checkpoint
from tests.support.fault_proxy import FAULTS, FaultProxy, choose_at_random
from tests.support.object_stores import S3Server, make_object_store


def _connect(url: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, retry_seconds: float = 30) -> ObjectStorage:
    """Returns a storage that sends its requests to the proxy. The environment stays that of the server."""
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        return ObjectStorage(url, retry_seconds=retry_seconds)


def _check(storage: ObjectStorage, committed: list[str]) -> None:
    """All that was committed is there and good, and nothing is half there."""
    resolution = Store(storage).resolve(verify_all=True)
    assert resolution.chosen_checkpoint is not None
    names = {resolution.chosen_checkpoint.name, *(checkpoint.name for checkpoint in resolution.older_checkpoints)}
    assert set(committed) <= names
    assert ([*resolution.bad_checkpoints], [*resolution.lost_names], [*resolution.log_problems]) == ([], [], [])


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_of_the_first_requests_is_retried(
    fault: str, s3_server: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch
):
    direct = ObjectStorage(s3_url)
    with FaultProxy(s3_server.port, lambda method, path, number: fault if number % 4 == 1 else None) as proxy:
        store = make_object_store(_connect(s3_url, proxy, monkeypatch), [10])
        assert store.latest_checkpoint() is not None
    assert set(proxy.faults) == {fault}
    _check(direct, ["000001-step-10"])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_no_commit_is_lost_or_half_visible_under_random_faults(
    seed: int, s3_server: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch
):
    direct = ObjectStorage(s3_url)
    committed: list[str] = []
    failures = 0
    with FaultProxy(s3_server.port, choose_at_random(seed, 0.3)) as proxy:
        storage = _connect(s3_url, proxy, monkeypatch, retry_seconds=0.2)  # short: some commits fail
        for _ in range(100):
            if len(committed) >= 15:
                break
            try:
                store = Store(storage)
                attempt = store.begin_attempt(store.resolve())
                for step in range(10, 60, 10):
                    committed += [commit_checkpoint(store, step, attempt=attempt).name]
            except (OSError, FolderLostError, RanksDisagreeError):
                failures += 1
    assert {*proxy.faults} == {*FAULTS}
    assert len(committed) >= 15
    assert len(set(committed)) == len(committed)
    _check(direct, committed)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["cut upload", "lose response", "slow down"])
def test_an_upload_in_parts_survives_faults_of_its_parts(
    fault: str, s3_server: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(object_store, "PART_BYTES", 6 << 20)
    weight = torch.randn(6_000_000)

    def choose(method: str, path: str, number: int) -> str | None:
        return fault if "partNumber" in path and number % 3 == 0 else None

    with FaultProxy(s3_server.port, choose) as proxy:
        store = make_object_store(_connect(s3_url, proxy, monkeypatch), [])
        info = CommitInfo(step=10, epoch=0, world_size=1)
        for _ in range(4):
            store.commit(lambda file: torch.save({"weight": weight}, file), info, attempt=1)
    assert {*proxy.faults} == {fault}
    _check(ObjectStorage(s3_url), [f"{sequence:06d}-step-10" for sequence in range(1, 5)])


def test_a_network_that_fails_while_a_checkpoint_is_verified_does_not_make_it_bad(
    s3_server: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch
):
    make_object_store(ObjectStorage(s3_url), [10, 20])
    is_broken = threading.Event()

    def choose(method: str, path: str, number: int) -> str | None:
        return "cut response" if is_broken.is_set() and "000002-step-20.ckpt" in path else None

    with FaultProxy(s3_server.port, choose) as proxy:
        monkeypatch.setattr("stormproof.checkpoint.read_retry.READ_RETRY_DELAYS", ())
        store = Store(_connect(s3_url, proxy, monkeypatch, retry_seconds=0.1))
        is_broken.set()
        resolution = store.resolve()
        assert [(bad.name, bad.is_unreadable) for bad in resolution.bad_checkpoints] == [("000002-step-20", True)]
        is_broken.clear()
        assert store.latest_checkpoint() is not None
    _check(ObjectStorage(s3_url), ["000001-step-10", "000002-step-20"])


def test_a_manifest_whose_responses_are_all_lost_is_decided_by_the_next_attempt(
    s3_server: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch
):
    is_broken = threading.Event()

    def choose(method: str, path: str, number: int) -> str | None:
        if method == "PUT" and path.endswith("-step-20.json"):
            is_broken.set()
        return "lose response" if is_broken.is_set() else None

    with FaultProxy(s3_server.port, choose) as proxy:
        store = make_object_store(_connect(s3_url, proxy, monkeypatch, retry_seconds=0.2), [10])
        with pytest.raises(OutcomeUnknownError, match="cannot be reached"):
            commit_checkpoint(store, 20)
    direct = Store(ObjectStorage(s3_url))
    resolution = direct.resolve(verify_all=True)
    assert resolution.chosen_checkpoint is not None
    assert resolution.chosen_checkpoint.name == "000002-step-20"
    direct.begin_attempt(resolution)
    _check(ObjectStorage(s3_url), ["000001-step-10", "000002-step-20"])


def _race(
    url: str, use_lease: bool, pause: float, rounds: int, seed: int, committed: list[tuple[str, str]], owners: list
) -> None:
    """Starts attempts, and waits for up to ``pause`` seconds before each one."""
    generator = random.Random(seed)
    storage = ObjectStorage(url, retry_seconds=10)
    for _ in range(rounds):
        time.sleep(generator.uniform(0, pause))
        lease = None
        try:
            lease = Lease(storage) if use_lease else None
            store = Store(storage)
            attempt = store.begin_attempt(store.resolve())
            owners.append((attempt, seed))
            for step in range(10, 10 * generator.randint(2, 5), 10):
                fence = lease.check if lease else None
                checkpoint = commit_checkpoint(store, step, attempt=attempt, fence=fence)
                committed.append((checkpoint.name, checkpoint.digest))
        except (FolderLostError, FolderTakenError, RanksDisagreeError):
            continue
        finally:
            if lease is not None:
                lease.release()


def _measure_commit(url: str) -> float:
    """Returns the seconds that an attempt needs until its first checkpoint is committed, without another attempt."""
    start = time.perf_counter()
    storage = ObjectStorage(url)
    lease = Lease(storage)
    store = Store(storage)
    commit_checkpoint(store, 10, attempt=store.begin_attempt(store.resolve()), fence=lease.check)
    lease.release()
    return time.perf_counter() - start


@pytest.mark.slow
@pytest.mark.parametrize("use_lease", [False, True], ids=["without a lease", "with a lease that expires at once"])
def test_two_stores_race_for_one_prefix_and_lose_nothing(use_lease: bool, s3_url: str, monkeypatch: pytest.MonkeyPatch):
    pause = 4 * _measure_commit(f"{s3_url}/alone") if use_lease else 0.0  # so that some attempts commit
    monkeypatch.setattr(Owner, "is_running", lambda self: False)
    committed: list[tuple[str, str]] = []
    owners: list[tuple[int, int]] = []
    for seed in range(0, 20, 2):
        threads = [
            threading.Thread(target=_race, args=(s3_url, use_lease, pause, 8, seed + number, committed, owners))
            for number in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if len(committed) > 5:
            break
    assert len(committed) > 5
    assert len({name for name, _ in committed}) == len(committed)
    assert len({name[:6] for name, _ in committed}) == len(committed)  # sequence numbers
    assert len({attempt for attempt, _ in owners}) == len(owners)
    _check(ObjectStorage(s3_url), [name for name, _ in committed])
    digests = {checkpoint.name: checkpoint.digest for checkpoint in Store(ObjectStorage(s3_url)).read_checkpoints()}
    assert {name: digests[name] for name, _ in committed} == dict(committed)
    Store(ObjectStorage(s3_url)).apply_retention(Retention())
    _check(ObjectStorage(s3_url), [])


COMMIT_FOREVER = """
import sys, torch
from stormproof.checkpoint import CommitInfo, Retention, Store
from stormproof.checkpoint.storage import ObjectStorage

store = Store(ObjectStorage(sys.argv[1], retry_seconds=5))
attempt = store.begin_attempt(store.resolve())
latest = store.latest_checkpoint()
step = latest.step if latest else 0
while True:
    step += 10
    state = {"state_dict": {"weight": torch.full((1000,), float(step))}, "global_step": step, "epoch": 0}
    info = CommitInfo(step=step, epoch=0, world_size=1)
    store.commit(lambda file: torch.save(state, file), info, attempt=attempt)
    print(step, flush=True)
    store.apply_retention(Retention())
"""


@pytest.mark.drill
def test_a_process_killed_at_random_times_loses_no_commit(s3_server: S3Server, s3_url: str, tmp_path: Path):
    generator = random.Random(0)
    last = 0
    for _ in range(8):
        environment = {**os.environ, **s3_server.environment()}
        command = [sys.executable, "-c", COMMIT_FOREVER, s3_url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            last = int(process.stdout.readline())
            time.sleep(generator.uniform(0, 0.5))  # any moment of a commit or a deletion
            process.kill()
            last = max([last, *map(int, process.stdout.read().split())])
        resolution = Store(ObjectStorage(s3_url)).resolve(verify_all=True)
        assert resolution.chosen_checkpoint is not None
        assert resolution.chosen_checkpoint.step in {last, last + 10}
        assert ([*resolution.bad_checkpoints], [*resolution.lost_names]) == ([], [])
