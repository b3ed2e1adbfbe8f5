"""The store on an object store: content, quarantine, retention, corruption, and the log."""

import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from obstore.store import MemoryStore

from stormproof.checkpoint import COMMIT_POINTS, CommitInfo, Retention, Store, observe_fault_points
from stormproof.checkpoint.adoption import adopt
from stormproof.checkpoint.storage import ObjectStorage
from stormproof.cli.main import list_store
from stormproof.errors import FolderLostError, NoGoodCheckpointError
from tests.support.checkpoint_files import commit_checkpoint, forge_manifest, make_state, make_store
from tests.support.forked_command import ROOT
from tests.support.object_stores import flip_object_bit, make_object_store, object_names, overwrite


@pytest.fixture(params=["memory", "s3"])
def storage(request: pytest.FixtureRequest) -> ObjectStorage:
    if request.param == "memory":
        return ObjectStorage("s3://bucket/run", store=MemoryStore(), retry_seconds=0.1)
    return ObjectStorage(request.getfixturevalue("s3_url"), retry_seconds=5)


@pytest.fixture
def memory() -> ObjectStorage:
    return ObjectStorage("s3://bucket/run", store=MemoryStore(), retry_seconds=0.1)


def test_what_was_committed_is_what_torch_loads_with_its_metadata(storage: ObjectStorage, tmp_path: Path):
    store = Store(storage)
    attempt = store.begin_attempt(store.resolve())
    facts = {"score": 0.5, "identity": "1f", "run": "mine", "healthy": True}
    result = commit_checkpoint(store, 120, epoch=3, world_size=2, attempt=attempt, **facts)
    assert store.read_checkpoints() == [result]
    assert store.latest_checkpoint() == result
    (tmp_path / "copy.ckpt").write_bytes(storage.read(result.path.name))
    loaded = torch.load(tmp_path / "copy.ckpt", weights_only=True)
    assert torch.equal(loaded["state_dict"]["weight"], make_state(120)["state_dict"]["weight"])
    assert (result.step, result.attempt, result.score, result.identity) == (120, 1, 0.5, "1f")
    assert object_names(storage) == {"000001-step-120.ckpt", "000001-step-120.json"}
    assert [entry.name for entry in storage.list("log")] == ["00000001.jsonl", "00000002.jsonl"]


def test_a_copy_of_the_objects_is_a_folder_of_checkpoints(memory: ObjectStorage, tmp_path: Path):
    make_object_store(memory)
    for name in object_names(memory):
        (tmp_path / name).write_bytes(memory.read(name))
    logs = sorted(entry.name for entry in memory.list("log"))
    (tmp_path / "commits.log").write_bytes(b"".join(memory.read(f"log/{name}") for name in logs))
    resolution = Store(tmp_path).resolve(verify_all=True)
    assert resolution.chosen_checkpoint is not None
    assert resolution.chosen_checkpoint.step == 30
    assert ([*resolution.log_problems], [*resolution.bad_checkpoints]) == ([], [])


def test_a_commit_passes_its_points_in_order(memory: ObjectStorage):
    store = make_object_store(memory, [])
    points: list[str] = []
    with observe_fault_points(points.append):
        commit_checkpoint(store, 10)
    assert tuple(points) == COMMIT_POINTS


class _OrderedError(Exception):
    pass


def _fail_at(point: str) -> Callable[[str], None]:
    def observer(reached: str) -> None:
        if reached == point:
            raise _OrderedError

    return observer


@pytest.mark.parametrize("point", COMMIT_POINTS)
def test_a_commit_that_fails_anywhere_is_whole_or_leaves_nothing(point: str, memory: ObjectStorage):
    store = make_object_store(memory)
    before = object_names(memory)
    with observe_fault_points(_fail_at(point)), pytest.raises(_OrderedError):
        commit_checkpoint(store, 40)
    committed = COMMIT_POINTS.index(point) >= COMMIT_POINTS.index("manifest renamed")
    assert object_names(memory) - before == ({"000004-step-40.ckpt", "000004-step-40.json"} if committed else set())
    resolution = store.resolve(verify_all=True)
    assert resolution.chosen_checkpoint is not None
    assert resolution.chosen_checkpoint.step == (40 if committed else 30)
    assert ([*resolution.bad_checkpoints], [*resolution.lost_names], [*resolution.leftover_files]) == ([], [], [])
    store.begin_attempt(resolution)
    assert commit_checkpoint(store, 50).sequence == (4 if point == COMMIT_POINTS[0] else 5)  # a claim is not reused
    assert [*store.resolve(verify_all=True).lost_names] == []


def test_a_damaged_checkpoint_goes_to_quarantine_without_a_copy(storage: ObjectStorage):
    store = make_object_store(storage)
    flip_object_bit(storage, "000003-step-30.ckpt")
    resolution = store.resolve()
    assert [(bad.name, bad.reason) for bad in resolution.bad_checkpoints] == [
        ("000003-step-30", "its content has changed since it was committed")
    ]
    store.begin_attempt(resolution)
    assert "000003-step-30.ckpt" in object_names(storage)
    second = store.resolve(verify_all=True)
    assert second.chosen_checkpoint is not None
    assert second.chosen_checkpoint.step == 20
    assert ([*second.bad_checkpoints], [*second.lost_names], [*second.leftover_files]) == ([], [], [])
    assert [(bad.name, bad.reason) for bad in list_store(Store(storage)).quarantined_checkpoints] == [
        ("000003-step-30", "its content has changed since it was committed")
    ]
    assert commit_checkpoint(store, 30).sequence == 4


def test_a_rollback_puts_good_checkpoints_into_quarantine(memory: ObjectStorage):
    store = make_object_store(memory)
    store.quarantine(store.read_checkpoints()[1:], "after the target of a rollback")
    assert [checkpoint.step for checkpoint in store.read_checkpoints()] == [10]
    assert commit_checkpoint(store, 20).name == "000004-step-20"
    store.apply_retention(Retention())
    assert {"000002-step-20.ckpt", "000003-step-30.ckpt"} <= object_names(memory)
    assert [*store.resolve(verify_all=True).lost_names] == []


def test_retention_deletes_what_it_deletes_in_a_folder(storage: ObjectStorage, tmp_path: Path):
    stores = [make_object_store(storage, range(10, 80, 10)), make_store(tmp_path, range(10, 80, 10))]
    retention = Retention(keep_last=2, keep_every_n_train_steps=30)
    deleted = [[checkpoint.name for checkpoint in store.apply_retention(retention)] for store in stores]
    assert deleted[0] == deleted[1] != []
    names = [[checkpoint.name for checkpoint in store.read_checkpoints()] for store in stores]
    assert names[0] == names[1]
    assert [*stores[0].resolve(verify_all=True).lost_names] == []


def test_a_checkpoint_with_code_is_refused_and_its_code_does_not_run(memory: ObjectStorage):
    store = make_object_store(memory)
    store.commit(lambda file: torch.save({"x": Path("x")}, file), CommitInfo(step=40, epoch=0, world_size=1), attempt=1)
    resolution = store.resolve()
    assert resolution.chosen_checkpoint is not None
    assert resolution.chosen_checkpoint.step == 30
    assert "which is code and not data" in resolution.bad_checkpoints[0].reason


def test_a_manifest_of_another_file_is_bad_and_all_bad_is_refused(memory: ObjectStorage):
    store = make_object_store(memory, [10])
    (checkpoint,) = store.read_checkpoints()
    overwrite(memory, "000001-step-10.json", forge_manifest(checkpoint, file="other.ckpt"))
    with pytest.raises(NoGoodCheckpointError, match=r"s3://bucket/run has no good checkpoint .000001-step-10: its man"):
        store.latest_checkpoint()


def test_an_object_is_verified_without_a_file(memory: ObjectStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = make_object_store(memory)
    for variable in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.setenv(variable, str(tmp_path / "missing"))
    monkeypatch.chdir(tmp_path)
    assert store.latest_checkpoint() is not None
    assert list(tmp_path.iterdir()) == []


def test_the_log_is_appended_to_by_one_process(memory: ObjectStorage):
    first, second = make_object_store(memory, [10]), Store(memory)
    second.read_attempts()
    stale = memory.list("log")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ObjectStorage, "list", lambda self, folder="": stale if folder == "log" else [])
        first._append({"event": "deleted", "name": "000001-step-10"})
        with pytest.raises(FolderLostError, match="Another process writes to s3://bucket/run"):
            second._append({"event": "deleted", "name": "000001-step-10"})


def test_an_object_of_the_log_is_read_once(memory: ObjectStorage, monkeypatch: pytest.MonkeyPatch):
    store = make_object_store(memory)
    reads: list[str] = []
    read = ObjectStorage.read
    monkeypatch.setattr(ObjectStorage, "read", lambda self, name: reads.append(name) or read(self, name))
    commit_checkpoint(store, 40)
    assert [name for name in reads if name.startswith("log/")] == ["log/00000004.jsonl"]


def test_adopt_commits_to_an_object_store(storage: ObjectStorage, tmp_path: Path):
    torch.save(make_state(600), tmp_path / "last.ckpt")
    adopted = adopt(tmp_path / "last.ckpt", Store(storage))
    latest = Store(storage).latest_checkpoint()
    assert latest == adopted
    assert (adopted.step, adopted.adopted) == (600, True)


@pytest.fixture
def corruptions(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "scripts" / "benchmarks")
    import corruptions

    return corruptions


@pytest.mark.slow
def test_every_corruption_is_found(corruptions: ModuleType, memory: ObjectStorage, tmp_path: Path):
    corruptions.commit_steps(Store(memory))
    objects, generator = corruptions.read_objects(memory), random.Random(1)
    for kind in corruptions.KINDS:
        for _ in range(15):
            corruption = corruptions.corrupt_object(objects, tmp_path, generator, kinds=[kind])
            assert corruption.is_found, corruption
