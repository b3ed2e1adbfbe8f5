"""Two ranks measure the same steps, although their clocks and suspicions differ."""

import json
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.distributed.elastic.utils.distributed import get_free_port
from torch.utils.data import DataLoader, TensorDataset

from stormproof import DivergenceGuard, GradientNormMonitor
from stormproof.probe import budget
from stormproof.probe.probe import Probe
from tests.support.ranks import call_on_two_ranks, join_two_ranks
from tests.support.small_fits import LIGHTNING_WARNING_FILTERS, RowsLogger, make_trainer

pytestmark = [pytest.mark.slow, *LIGHTNING_WARNING_FILTERS]


class Net(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Linear(8, 1)

    def training_step(self, batch: tuple[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class SuspectsOnOneRank(pl.Callback):
    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_rank == 1 and trainer.global_step == 23:
            Probe.of(trainer).request_extra_measurements()


def _train(rank: int, port: int, folder: Path) -> None:
    join_two_ranks(rank, port)
    if rank == 1:  # measuring appears to take longer than the step
        ticks = iter(range(10**9))
        budget.perf_counter = lambda: 1e6 * next(ticks)
    monitor, rows = GradientNormMonitor(budget=1.0, table=False), RowsLogger()
    callbacks = [monitor, DivergenceGuard("skip"), SuspectsOnOneRank()]
    trainer = make_trainer(
        callbacks=callbacks, logger=rows, log_every_n_steps=1000, strategy="ddp", devices=2, max_epochs=1
    )
    trainer.fit(Net(), DataLoader(TensorDataset(torch.randn(120, 8)), batch_size=1))
    measured = [measurement.step for measurement in monitor.history]
    intervals = [row["probe/gradients_interval"] for _, row in rows.rows if "probe/gradients_interval" in row]
    (folder / f"{rank}.json").write_text(json.dumps([measured, intervals]))


def test_both_ranks_use_the_longer_interval_and_measure_extra_steps_after_the_next_exchange(tmp_path: Path):
    call_on_two_ranks(_train, get_free_port(), tmp_path)
    results = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    (measured, intervals), (other_measured, _) = results
    assert measured == other_measured == [*range(1, 21), 31, 32, 35, 40, 50]
    assert intervals == [1000.0, 1000.0]
