"""Before retention deletes a checkpoint, each rank reads a shard of the newest one."""

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.elastic.utils.distributed import get_free_port
from torch.distributed.tensor import Shard, distribute_tensor

from stormproof.checkpoint import Checkpoint, CommitInfo, Store, read_retry
from stormproof.checkpoint.sharding.rank_channel import ReadRequest
from stormproof.checkpoint.sharding.shard_writer import ShardWriter
from stormproof.checkpoint.storage import PosixStorage
from stormproof.errors import DamagedError
from tests.support.checkpoint_files import flip_bit
from tests.support.ranks import call_on_two_ranks


class RecordingStorage(PosixStorage):
    """Records the names of files that are read, or raises ``error``."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.names: list[str] = []
        self.before_read: Callable[[], object] = lambda: None
        self.error: OSError | None = None

    def get(self, name: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        if self.error is not None:
            raise self.error
        self.before_read()
        self.names.append(Path(name).name)
        return super().get(name, start, stop)


def _commit(store: Store, writer: ShardWriter, rank: int) -> Checkpoint | None:
    mesh = init_device_mesh("cpu", (2,))
    writer.plan({"state_dict": {"weight": distribute_tensor(torch.arange(8.0), mesh, [Shard(0)])}})
    writer.stage()
    if rank:
        return None
    info = CommitInfo(step=1, epoch=0, world_size=2)
    return store.commit_sharded(lambda folder: writer.write(folder, {"global_step": 1}), info, attempt=1)


def _read_back(rank: int, folder: str, port: int) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    read_retry.READ_RETRY_DELAYS = (0.0, 0.0)
    store, storage = Store(Path(folder)), RecordingStorage(Path(folder))
    writer = ShardWriter(storage, rank)
    if rank == 0:
        store.begin_attempt(store.resolve())
    checkpoint = _commit(store, writer, rank)

    if checkpoint is not None:
        store.read_back(checkpoint, writer.check_content)
    dist.barrier()
    assert storage.names == ([".metadata", "__1_0.distcp", "meta.pt"] if rank == 0 else ["__0_0.distcp"])

    storage.error = OSError(errno.EIO, os.strerror(errno.EIO)) if rank == 1 else None
    dist.barrier()
    if checkpoint is not None:
        with pytest.raises(OSError, match="rank 1: Input/output error"):
            store.read_back(checkpoint, writer.check_content)
    dist.barrier()
    storage.error = None
    dist.barrier()
    if checkpoint is not None:
        flip_bit(checkpoint.path / "__0_0.distcp")
        with pytest.raises(DamagedError, match="its content has changed"):
            store.read_back(checkpoint, writer.check_content)
        flip_bit(checkpoint.path / "__0_0.distcp")
        storage.names.clear()
    dist.barrier()

    if rank == 1:
        writer.close()
    dist.barrier()
    if checkpoint is not None:
        store.read_back(checkpoint, writer.check_content)
        assert sorted(storage.names) == [".metadata", "__0_0.distcp", "__1_0.distcp", "meta.pt"]
        writer.close()
    dist.barrier()
    dist.destroy_process_group()


def _time_out(rank: int, folder: str, port: int) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    storage, can_read = RecordingStorage(Path(folder)), threading.Event()
    storage.before_read = can_read.wait if rank == 1 else lambda: None
    writer, store = ShardWriter(storage, rank), Store(Path(folder))
    if rank == 0:
        store.begin_attempt(store.resolve())
    checkpoint = _commit(store, writer, rank)
    if checkpoint is not None:
        request = ReadRequest([{}, {"000001-step-1.ckpt/__0_0.distcp": next(iter(checkpoint.stored_files.values()))}])
        for _ in range(2):
            assert isinstance(writer._request(request, 0.2)[1].error, TimeoutError)
    dist.barrier()
    can_read.set()
    if checkpoint is not None:
        store.read_back(checkpoint, writer.check_content)
        assert "__0_0.distcp" not in storage.names  # the other rank has read it
        writer.close()
    dist.barrier()
    writer.close()
    dist.destroy_process_group()


def _end_suddenly(rank: int, folder: str, port: int) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    storage = RecordingStorage(Path(folder))
    storage.before_read = (lambda: os._exit(0)) if rank == 1 else lambda: None
    writer, store = ShardWriter(storage, rank), Store(Path(folder))
    if rank == 0:
        store.begin_attempt(store.resolve())
    checkpoint = _commit(store, writer, rank)
    if checkpoint is None:
        threading.Event().wait(100)
    else:
        start = time.monotonic()
        store.read_back(checkpoint, writer.check_content)
        assert sorted(storage.names) == [".metadata", "__0_0.distcp", "__1_0.distcp", "meta.pt"]
        assert time.monotonic() - start < 30  # without the check of the process: for ever
        os._exit(0)


@pytest.mark.slow
def test_rank_zero_does_not_wait_for_a_rank_that_was_killed(tmp_path: Path):
    call_on_two_ranks(_end_suddenly, str(tmp_path), get_free_port(), timeout=90)


@pytest.mark.slow
def test_a_rank_that_did_not_reply_in_time_executes_later_requests(tmp_path: Path):
    call_on_two_ranks(_time_out, str(tmp_path), get_free_port())


@pytest.mark.slow
def test_each_rank_reads_the_shard_of_another_one_and_rank_zero_reads_the_rest(tmp_path: Path):
    call_on_two_ranks(_read_back, str(tmp_path), get_free_port())
