"""Trainings that hang are ended with code 78 and say where; slow ones are left alone."""

from __future__ import annotations

import os
import pdb  # noqa: T100 (one stands at its prompt)
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from stormproof import CheckpointRecovery, HangWatch, resumable
from stormproof.hang_watch import EXIT_CODE
from stormproof.testing import FaultInjector
from tests.support.exact_resume_training import Cell
from tests.support.forked_attempts import fork_ranks, read_output
from tests.support.waiting import wait_for

pytestmark = pytest.mark.slow

ONE_RANK, WITH_WORKERS, TWO_RANKS = Cell(), Cell(workers=1), Cell(ranks=2)
TIMEOUT = 2.0
AT_MOST = 30.0
"""Seconds in which a hang must be noticed here, where others use the machine too; twice is more than enough."""


class Network(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.layer(batch).square().mean()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.layer(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Numbers(Dataset):
    """Eighty samples, in batches of four; that with the number ``deadlocked`` waits for an event that nobody sets."""

    def __init__(self, deadlocked: int | None = None) -> None:
        self.deadlocked = deadlocked

    def __len__(self) -> int:
        return 80

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == self.deadlocked:
            threading.Event().wait()
        return torch.tensor([float(index)])


class SkipsBackward(Network):
    """Rank 1 does not take part in the backward of its third batch: it waits for a message from the other instead."""

    def backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        if self.global_rank == 1 and self.global_step == 2:
            torch.distributed.recv(torch.zeros(1), src=0)
        super().backward(loss, *args, **kwargs)


def train_watched(
    cell: Cell,
    folder: Path,
    extra: list[list[pl.Callback]] | None = None,
    *,
    module: Callable[[], pl.LightningModule] = Network,
    deadlocked: int | None = None,
    on_rank: int | None = None,
    timeout: float = TIMEOUT,
    reports: bool = True,
    folder_is_gone: bool = False,
    **options: Any,
) -> None:
    """Trains for an epoch, as torchrun would have it: each rank carries its own code."""
    os.environ["RANK"] = rank = os.environ.get("LOCAL_RANK", "0")
    faulty = deadlocked if on_rank in {None, int(rank)} else None
    settings: dict[str, Any] = {
        "max_epochs": 1, "accelerator": "cpu", "devices": cell.ranks, "logger": False, "enable_checkpointing": False,
        "strategy": "ddp" if cell.ranks > 1 else "auto", "enable_progress_bar": False, "enable_model_summary": False,
        "num_sanity_val_steps": 0, "use_distributed_sampler": False,
    }  # fmt: skip
    written_to = folder / "gone" if folder_is_gone else folder
    if folder_is_gone:
        written_to.write_text("no folder")
    watch = HangWatch(timeout, run_folder=written_to if reports else None)
    fit = pl.Trainer(callbacks=[*(extra[0] if extra else []), watch], **{**settings, **options})
    loader = DataLoader(Numbers(faulty), batch_size=4, num_workers=cell.workers)
    fit.fit(module(), loader, DataLoader(Numbers(), batch_size=20))


def wait_for_exit_code(pid: int) -> int:
    """With which code that process ends, in time."""
    waited_pid = (0, 0)

    def has_ended() -> bool:
        nonlocal waited_pid
        waited_pid = os.waitpid(pid, os.WNOHANG)
        return waited_pid[0] == pid

    wait_for(has_ended, AT_MOST)
    return os.waitstatus_to_exitcode(waited_pid[1])


def read_report(folder: Path, rank: int) -> tuple[str, str]:
    """The first line, and the rest."""
    sentence, _, rest = (folder / f"hang-rank{rank}.txt").read_text().partition("\n")
    return sentence, rest


def test_a_rank_that_is_stopped_is_noticed_by_the_other(tmp_path: Path):
    with fork_ranks(TWO_RANKS, tmp_path, lambda: [FaultInjector().stop(step=2, rank=1)], train_watched) as pids:
        start = time.monotonic()
        assert wait_for_exit_code(pids[0]) == EXIT_CODE
        assert time.monotonic() - start > TIMEOUT
    sentence, rest = read_report(tmp_path, 0)
    assert sentence.startswith(
        "hang: rank 0 of 2 made no progress for 2 s at step 2, in train: in a collective, in broadcast "
    )
    assert sentence.endswith("gloo:broadcast not completed; rank 1 wrote no report (suspended or terminated)")
    assert "_broadcast_sigterm_tensor" in rest  # where Lightning asks before each batch
    assert "gloo:broadcast, number" in rest
    assert not (tmp_path / "hang-rank1.txt").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_of_two_ranks_both_say_where_they_stand_if_one_waits_for_its_loader(workers: int, tmp_path: Path):
    cell = Cell(ranks=2, workers=workers)
    with fork_ranks(cell, tmp_path, None, train_watched, deadlocked=20, on_rank=1) as pids:
        assert [wait_for_exit_code(pid) for pid in pids] == [EXIT_CODE, EXIT_CODE]
    waiting, stacks = read_report(tmp_path, 1)
    assert "in train: waiting for the data loader, in " in waiting
    assert ("_try_get_data" if workers else "threading.Event().wait()") in stacks
    assert "in backward, in " in read_report(tmp_path, 0)[0]


def test_a_rank_that_never_enters_a_collective_is_found(tmp_path: Path):
    with fork_ranks(TWO_RANKS, tmp_path, None, train_watched, module=SkipsBackward) as pids:
        assert [wait_for_exit_code(pid) for pid in pids] == [EXIT_CODE, EXIT_CODE]
    assert "in a collective, in recv (" in read_report(tmp_path, 1)[0]
    assert "in backward, in " in read_report(tmp_path, 0)[0]


@pytest.mark.parametrize("cell", [ONE_RANK, WITH_WORKERS], ids=["in the process", "in a worker"])
def test_one_process_whose_loader_is_deadlocked_ends(cell: Cell, tmp_path: Path):
    with fork_ranks(cell, tmp_path, None, train_watched, deadlocked=20) as pids:
        assert wait_for_exit_code(pids[0]) == EXIT_CODE
    sentence, rest = read_report(tmp_path, 0)
    assert sentence.startswith("hang: rank 0 made no progress for 2 s at step ")
    assert "in train: waiting for the data loader, in " in sentence
    if cell.workers:
        (worker,) = [line.split()[0] for line in rest.partition("child processes:\n")[2].splitlines()]
        with suppress(psutil.NoSuchProcess):
            psutil.wait_procs([psutil.Process(int(worker))], AT_MOST)
            assert psutil.Process(int(worker)).status() == psutil.STATUS_ZOMBIE  # where nobody asks after orphans
    assert f"{sentence}; " in read_output(cell, tmp_path)


def test_without_a_folder_the_stacks_are_printed(tmp_path: Path):
    with fork_ranks(ONE_RANK, tmp_path, None, train_watched, deadlocked=20, reports=False) as pids:
        assert wait_for_exit_code(pids[0]) == EXIT_CODE
    output = read_output(ONE_RANK, tmp_path)
    assert "hang: rank 0 made no progress for 2 s" in output
    assert "threading.Event().wait()" in output
    assert not list(tmp_path.glob("hang-*"))


def test_where_no_report_can_be_written_it_is_printed(tmp_path: Path):
    with fork_ranks(TWO_RANKS, tmp_path, None, train_watched, deadlocked=20, on_rank=1, folder_is_gone=True) as pids:
        assert [wait_for_exit_code(pid) for pid in pids] == [EXIT_CODE, EXIT_CODE]
    output = read_output(TWO_RANKS, tmp_path)
    assert "threading.Event().wait()" in output
    assert "wrote no report" not in output


@pytest.mark.parametrize("stage", ["test", "predict"])
def test_other_stages_are_watched_too(stage: str, tmp_path: Path):
    with fork_ranks(ONE_RANK, tmp_path, None, _evaluated, stage=stage) as pids:
        assert wait_for_exit_code(pids[0]) == EXIT_CODE
    assert f"in {stage}: waiting for the data loader" in read_report(tmp_path, 0)[0]


def _evaluated(cell: Cell, folder: Path, extra: Any = None, *, stage: str) -> None:
    class Evaluated(Network):
        test_step = predict_step = Network.validation_step

    trainer = pl.Trainer(logger=False, callbacks=[HangWatch(TIMEOUT, run_folder=folder)], enable_progress_bar=False)
    getattr(trainer, stage)(Evaluated(), DataLoader(Numbers(deadlocked=20), batch_size=4))


# What is slow, and no hang


class Slow(pl.Callback):
    """Does something at each batch of a validation, or at the third of the training."""

    def __init__(self, validating: Callable[[], Any] = int, training: Callable[[], Any] = int) -> None:
        self.validating, self.training = validating, training

    def on_validation_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self.validating()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            self.training()


def busy_wait(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        torch.randn(200, 200).matmul(torch.randn(200, 200))


def assert_finishes(cell: Cell, folder: Path, extra: Any, function: Any = train_watched, **options: Any) -> None:
    with fork_ranks(cell, folder, extra, function, **options) as pids:
        assert [wait_for_exit_code(pid) for pid in pids] == [0] * cell.ranks, read_output(cell, folder)
    assert not list(folder.glob("hang-*"))


def test_a_validation_that_takes_longer_than_the_time_is_no_hang(tmp_path: Path):
    assert_finishes(ONE_RANK, tmp_path, lambda: [Slow(validating=lambda: time.sleep(TIMEOUT / 2))])


def test_a_batch_that_computes_for_longer_is_none(tmp_path: Path):
    assert_finishes(ONE_RANK, tmp_path, lambda: [Slow(training=lambda: busy_wait(2.5 * TIMEOUT))])


def test_a_rank_that_waits_for_one_that_computes_is_none(tmp_path: Path):
    """As others wait while rank 0 evaluates alone; only that one shows a sign of life."""

    def busy() -> list[pl.Callback]:
        return [Slow(training=lambda: busy_wait(2.5 * TIMEOUT))] if os.environ["LOCAL_RANK"] == "0" else []

    assert_finishes(TWO_RANKS, tmp_path, busy)


def test_a_program_that_a_hook_starts_counts_as_work(tmp_path: Path):
    program = f"import time\nwhile time.process_time() < {2 * TIMEOUT}: pass"
    assert_finishes(
        ONE_RANK, tmp_path, lambda: [Slow(training=lambda: subprocess.run([sys.executable, "-c", program], check=True))]
    )


@pytest.mark.parametrize("cell", [ONE_RANK, TWO_RANKS], ids=["one rank", "two ranks"])
def test_a_checkpoint_that_takes_long_is_none(cell: Cell, tmp_path: Path):
    """The last is waited for, and its fsync takes longer than the time."""

    def slow() -> list[pl.Callback]:
        recovery = CheckpointRecovery(tmp_path / "checkpoints", every_n_train_steps=1000)
        return [FaultInjector().slow(2 * TIMEOUT, "checkpoint written", step=10), recovery]

    assert_finishes(cell, tmp_path, slow, _recoverable)


def _recoverable(cell: Cell, folder: Path, extra: Any = None) -> None:
    os.environ["RANK"] = os.environ.get("LOCAL_RANK", "0")
    strategy: Any = {"strategy": "ddp", "devices": 2} if cell.ranks > 1 else {}
    trainer = pl.Trainer(
        max_steps=10, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        callbacks=[HangWatch(TIMEOUT, run_folder=folder), *extra[0]], use_distributed_sampler=False, **strategy,
    )  # fmt: skip
    trainer.fit(Network(), resumable(DataLoader(Numbers(), batch_size=4)))


@pytest.mark.parametrize("cell", [ONE_RANK, TWO_RANKS], ids=["one rank", "two ranks"])
def test_a_job_that_was_stopped_and_continued_goes_on(cell: Cell, tmp_path: Path):
    with fork_ranks(cell, tmp_path, lambda: [FaultInjector().stop(step=2)], train_watched) as pids:
        for pid in pids:
            assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
        time.sleep(1.5 * TIMEOUT)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        assert [wait_for_exit_code(pid) for pid in pids] == [0] * cell.ranks
    assert not list(tmp_path.glob("hang-*"))


def test_a_debugger_at_its_prompt_is_no_hang(tmp_path: Path):
    reads, writes = os.pipe()

    def debug() -> None:
        pdb.Pdb(stdin=os.fdopen(reads), stdout=sys.stdout).set_trace()

    with fork_ranks(ONE_RANK, tmp_path, lambda: [Slow(training=debug)], train_watched) as pids:
        wait_for(lambda: "(Pdb)" in read_output(ONE_RANK, tmp_path), AT_MOST)
        time.sleep(2 * TIMEOUT)
        os.write(writes, b"continue\n")
        assert wait_for_exit_code(pids[0]) == 0, read_output(ONE_RANK, tmp_path)
    os.close(reads)
    os.close(writes)
    assert not list(tmp_path.glob("hang-*"))


@pytest.mark.drill
def test_a_step_that_is_compiled_is_no_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(sys.modules[__name__], "AT_MOST", 150.0)
    start = time.monotonic()
    assert_finishes(ONE_RANK, tmp_path, None, module=_compiled, timeout=1.0)
    assert time.monotonic() - start > 3.0


def _compiled() -> pl.LightningModule:
    module = Network()
    module.layer = torch.compile(nn.Sequential(nn.Linear(1, 8), nn.GELU(), nn.Linear(8, 1)))  # type: ignore[assignment]
    return module
