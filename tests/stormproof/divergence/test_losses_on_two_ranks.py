"""On several ranks, DivergenceGuard compares their mean loss every ten steps."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch.distributed.elastic.utils.distributed import get_free_port

from stormproof import DivergenceGuard, resumable
from stormproof.divergence.step_losses import agree_on_counts
from stormproof.errors import DivergedError, RanksDisagreeError
from tests.stormproof.divergence.diverging_fits import QUIET, SPIKE, Classifier, data
from tests.support.ranks import call_on_two_ranks
from tests.support.small_fits import module, trainer

pytestmark = [*QUIET, pytest.mark.slow]
FIRST = 45


class Shifted(Classifier):
    """From one step on, the loss is higher by a constant, so its gradient is not."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return super().training_step(batch, batch_idx) + SPIKE * (self.global_step >= FIRST)


def _train(rank: int, folder: str, port: int) -> None:
    os.environ.update(
        LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    fit = trainer(callbacks=[DivergenceGuard("stop")], strategy="ddp", devices=2, max_epochs=2)
    with pytest.raises(DivergedError, match="the loss is 1"):
        fit.fit(module(pl, Shifted), resumable(data()))
    Path(folder, str(rank)).write_text(str(fit.global_step))


def test_a_loss_that_rises_without_its_gradient_is_noticed_within_ten_steps(tmp_path: Path):
    call_on_two_ranks(_train, str(tmp_path), get_free_port())
    steps = [int(Path(tmp_path, str(rank)).read_text()) for rank in range(2)]
    assert steps[0] == steps[1] <= FIRST + 10


def _count(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    agree_on_counts(3, 5, torch.device("cpu"))
    with pytest.raises(RanksDisagreeError, match=r"the ranks have skipped \[3, 4\] steps"):
        agree_on_counts(3 + rank, 5, torch.device("cpu"))
    dist.destroy_process_group()


def test_ranks_that_have_skipped_different_steps_stop(tmp_path: Path):
    call_on_two_ranks(_count, str(tmp_path))
