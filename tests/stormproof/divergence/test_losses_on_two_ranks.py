"""DivergenceGuard checks the mean loss over ranks every ten steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.distributed.elastic.utils.distributed import get_free_port

from stormproof import DivergenceGuard, resumable
from stormproof.errors import DivergedError
from tests.stormproof.divergence.diverging_fits import IGNORE_WARNINGS, SPIKE, Classifier, make_loader
from tests.support.ranks import call_on_two_ranks, join_two_ranks
from tests.support.small_fits import make_module, make_trainer

pytestmark = [*IGNORE_WARNINGS, pytest.mark.slow]
SPIKE_STEP = 45


class Shifted(Classifier):
    """Adds a constant to the loss from step ``SPIKE_STEP`` on. The gradient does not change."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return super().training_step(batch, batch_idx) + SPIKE * (self.global_step >= SPIKE_STEP)


def _train_rank(rank: int, folder: str, port: int) -> None:
    join_two_ranks(rank, port)
    fit = make_trainer(callbacks=[DivergenceGuard("stop")], strategy="ddp", devices=2, max_epochs=2)
    with pytest.raises(DivergedError, match="the loss is 1"):
        fit.fit(make_module(pl, Shifted), resumable(make_loader()))
    Path(folder, str(rank)).write_text(str(fit.global_step))


def test_a_loss_spike_with_an_unchanged_gradient_is_detected_within_ten_steps(tmp_path: Path):
    call_on_two_ranks(_train_rank, str(tmp_path), get_free_port())
    steps = [int(Path(tmp_path, str(rank)).read_text()) for rank in range(2)]
    assert steps[0] == steps[1] <= SPIKE_STEP + 10
