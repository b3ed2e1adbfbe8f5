"""DivergenceGuard checks the mean loss over ranks every ten steps."""

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
from stormproof.divergence.step_losses import StepLosses
from stormproof.errors import DivergedError, RanksDisagreeError
from tests.stormproof.divergence.diverging_fits import IGNORE_WARNINGS, SPIKE, Classifier, make_loader
from tests.support.ranks import call_on_two_ranks
from tests.support.small_fits import make_module, make_trainer

pytestmark = [*IGNORE_WARNINGS, pytest.mark.slow]
SPIKE_STEP = 45


class Shifted(Classifier):
    """Adds a constant to the loss from step ``SPIKE_STEP`` on. The gradient does not change."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return super().training_step(batch, batch_idx) + SPIKE * (self.global_step >= SPIKE_STEP)


def _train_rank(rank: int, folder: str, port: int) -> None:
    os.environ.update(
        LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    fit = make_trainer(callbacks=[DivergenceGuard("stop")], strategy="ddp", devices=2, max_epochs=2)
    with pytest.raises(DivergedError, match="the loss is 1"):
        fit.fit(make_module(pl, Shifted), resumable(make_loader()))
    Path(folder, str(rank)).write_text(str(fit.global_step))


def test_a_loss_spike_with_an_unchanged_gradient_is_detected_within_ten_steps(tmp_path: Path):
    call_on_two_ranks(_train_rank, str(tmp_path), get_free_port())
    steps = [int(Path(tmp_path, str(rank)).read_text()) for rank in range(2)]
    assert steps[0] == steps[1] <= SPIKE_STEP + 10


def _make_losses(count: int) -> StepLosses:
    losses = StepLosses(gathered_steps=4)
    for step in range(1, count + 1):
        losses.add(float(step))
        losses.finish_step(step)
    return losses


def _read_losses(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    device = torch.device("cpu")
    for count in (0, 1, 4, 9):
        assert _make_losses(count).read(3, device) == [(step, float(step)) for step in range(1, count + 1)]
    with pytest.raises(RanksDisagreeError, match=r"the ranks have skipped different numbers of steps \(\[3, 4\]\)"):
        _make_losses(9).read(3 + rank, device)
    with pytest.raises(RanksDisagreeError):
        _make_losses(3 + rank).read(3, device)
    dist.destroy_process_group()


def test_ranks_that_have_skipped_different_numbers_of_steps_stop(tmp_path: Path):
    call_on_two_ranks(_read_losses, str(tmp_path))
