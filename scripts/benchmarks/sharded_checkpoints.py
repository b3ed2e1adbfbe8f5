"""Measures checkpoints of sharded parameters: pauses, throughput and memory per rank, with other ways to save.

    python scripts/benchmarks/sharded_checkpoints.py [--megabytes 256] [--ranks 2] [--steps 60] [--every 20]

Each run trains a network whose parameters and AdamW states have the given size on CPU ranks with FSDP2. In each round,
in random order:

- ``none``: without checkpoints
- ``lightning``: Lightning's ModelCheckpoint with ``save_distributed_checkpoint=True``, which training waits for
- ``async_save``: ``torch.distributed.checkpoint.async_save`` in a callback, as the documentation of torch suggests,
  without the rest of Lightning's checkpoint
- ``torch_checkpointing``: the same state with the package ``torch_checkpointing``, if it is installed. Another process
  writes the checkpoint. The state is copied before training continues, because asynchronous copies require a GPU. The
  metadata for resharding is left out for the same reason.
- ``sharded``: CheckpointRecovery with sharded checkpoints
- ``full``: CheckpointRecovery with full checkpoints, which rank 0 gathers

Prints medians (minimum, maximum) over the rounds (``--rounds 3``):

- the pause per checkpoint after the first one
- the duration of the steps, relative to ``none`` in the same round
- the additional peak memory of the rank that needs most, relative to ``none`` and divided by the size of its shard
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import sys
import tempfile
import time
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed.checkpoint as dcp
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.elastic.utils.distributed import get_free_port
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parents[2]))

from stormproof import CheckpointRecovery, resumable
from tests.support.ranks import call_on_ranks

KINDS = ["none", "lightning", "async_save", "sharded", "full"]
if find_spec("torch_checkpointing") is not None:
    KINDS.append("torch_checkpointing")
WIDTH = 1024


class Task(pl.LightningModule):
    """A network of linear layers with 4 MB each."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.network = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers)))

    def configure_model(self) -> None:
        for layer in self.network:
            fully_shard(layer, mesh=self.device_mesh["data_parallel"])
        fully_shard(self.network, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        return self.network(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), foreach=False)


class Pauses(pl.Callback):
    """Records the time from the end of a batch to the start of the next one, by step."""

    def __init__(self) -> None:
        self.seconds: dict[int, float] = {}
        self._end = self.start = self.stop = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self._end:
            self.seconds[trainer.global_step] = time.perf_counter() - self._end
        self.start = self.start or time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        self._end = self.stop = time.perf_counter()


class AsyncSave(pl.Callback):
    """Saves with torch's ``async_save``."""

    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every, self.future = folder, every, None
        self.group: Any = None  # the thread must not use the group of the training thread

    def on_train_start(self, *_: Any) -> None:
        self.group = torch.distributed.new_group(backend="gloo")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step % self.every == 0:
            if self.future is not None:
                self.future.result()
            model_state, optimizer_state = get_state_dict(pl_module, trainer.optimizers)
            state = {"model": model_state, "optimizer": optimizer_state}
            self.future = dcp.async_save(
                state, checkpoint_id=self.folder / f"{trainer.global_step}", process_group=self.group
            )

    def on_train_end(self, *_: Any) -> None:
        if self.future is not None:
            self.future.result()


class TorchCheckpointing(pl.Callback):
    """Saves with the package ``torch_checkpointing``."""

    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every, self.manager = folder, every, None

    def on_train_start(self, *_: Any) -> None:
        from torch_checkpointing import (  # noqa: PLC0415 (optional)
            AsyncCheckpointSaverConfig,
            CheckpointManager,
            CheckpointStagerConfig,
        )
        from torch_checkpointing.checkpoint_process import CheckpointProcessConfig  # noqa: PLC0415 (optional)
        from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig  # noqa: PLC0415 (optional)

        self.folder.mkdir(exist_ok=True)
        save = AsyncCheckpointSaverConfig(
            staging_config=CheckpointStagerConfig(use_async_staging=False),
            process_config=CheckpointProcessConfig(subprocess_init_timeout_secs=300),
        )
        storage = LocalFileSystemStorageConfig(use_direct_io=False)  # direct I/O fails for files of some lengths
        self.manager: Any = CheckpointManager(CheckpointManager.Config(save=save, storage_config=storage))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step % self.every == 0:
            model_state, optimizer_state = get_state_dict(pl_module, trainer.optimizers)
            self.manager.save(
                str(self.folder / f"{trainer.global_step}"), {"model": model_state, "optimizer": optimizer_state}
            )

    def on_train_end(self, *_: Any) -> None:
        self.manager.close()


def train(rank: int, ranks: int, port: int, kind: str, folder: str, layers: int, steps: int, every: int) -> None:
    """Trains one rank and writes its measurements to ``folder``."""
    os.environ.update(
        LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    pauses, callbacks = Pauses(), []
    checkpoints = Path(folder, "checkpoints")
    if kind == "lightning":
        callbacks = [ModelCheckpoint(checkpoints, every_n_train_steps=every, save_top_k=1, monitor=None)]
    elif kind == "async_save":
        callbacks = [AsyncSave(checkpoints, every)]
    elif kind == "torch_checkpointing":
        callbacks = [TorchCheckpointing(checkpoints, every)]
    elif kind != "none":
        callbacks = [CheckpointRecovery(checkpoints, every_n_train_steps=every)]
    trainer = pl.Trainer(
        accelerator="cpu", devices=ranks, max_steps=steps, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=kind == "lightning", callbacks=[pauses, *callbacks],
        strategy=ModelParallelStrategy(ranks, 1, save_distributed_checkpoint=kind != "full"),
    )  # fmt: skip
    loader = DataLoader(TensorDataset(torch.randn(steps * ranks * 8, WIDTH)), batch_size=8)
    trainer.fit(Task(layers), resumable(loader))
    saved = [seconds for step, seconds in pauses.seconds.items() if step % every == 0 and step > every]
    content = {
        "pauses": saved,
        "seconds": pauses.stop - pauses.start,
        "bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    Path(folder, f"{rank}.json").write_text(json.dumps(content))


def measure(kind: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns the measurements of each rank."""
    layers = arguments.megabytes // 3 // (4 * WIDTH * WIDTH // 2**20)
    with tempfile.TemporaryDirectory() as folder:
        port = get_free_port()
        call_on_ranks(
            arguments.ranks, train, arguments.ranks, port, kind, folder, layers, arguments.steps, arguments.every,
            timeout=600,
        )  # fmt: skip
        return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(arguments.ranks)]


def summarize(values: list[float], digits: int = 2) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}, {max(values):.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=256, help="parameters and optimizer states of all ranks")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "500000"  # for the ranks: freed memory is returned to the system
    shard_bytes = arguments.megabytes * 2**20 / arguments.ranks
    results: dict[str, dict[str, list[float]]] = {
        kind: {"pause": [], "seconds": [], "ratio": [], "memory": []} for kind in KINDS
    }
    for number in range(arguments.rounds):
        measured = {kind: measure(kind, arguments) for kind in random.Random(number).sample(KINDS, len(KINDS))}
        base = measured["none"]
        for kind, ranks in measured.items():
            entry = results[kind]
            entry["seconds"].append(max(rank["seconds"] for rank in ranks))
            entry["ratio"].append(entry["seconds"][-1] / max(rank["seconds"] for rank in base))
            pairs = zip(ranks, base, strict=True)
            entry["memory"].append(max(rank["bytes"] - other["bytes"] for rank, other in pairs) / shard_bytes)
            entry["pause"].append(statistics.median(ranks[0]["pauses"]))
    for kind, entry in results.items():
        print(
            f"{kind:19} {summarize(entry['seconds'], 1)} s, ratio {summarize(entry['ratio'])}, pause "
            f"{summarize(entry['pause'], 3)} s, additional memory {summarize(entry['memory'])} shards"
        )


if __name__ == "__main__":
    main()
