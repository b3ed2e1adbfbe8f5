from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from stormproof import CheckpointRecovery, resumable
from tests.support.small_fits import (
    LIGHTNING_PYTORCH,
    LIGHTNING_WARNING_FILTERS,
    RegressionModule,
    make_loader,
    make_module,
    make_trainer,
)

pytestmark = [*LIGHTNING_WARNING_FILTERS, pytest.mark.filterwarnings("ignore:.*verbose parameter is deprecated.*")]
EPOCHS, STEPS_PER_EPOCH = 5, 3


class Scheduled(RegressionModule):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)  # type: ignore[attr-defined]
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)]


class Normalized(Scheduled):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.BatchNorm1d(2), self.layer)  # type: ignore[assignment]


class Rates(pl.Callback):
    """Records the learning rate of each step, and raises after a step."""

    def __init__(self, stop: int | None) -> None:
        self.rates: dict[int, float] = {}
        self.stop = stop

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.rates.setdefault(trainer.global_step, trainer.optimizers[0].param_groups[0]["lr"])
        if trainer.global_step == self.stop:
            raise KeyError("killed")


def fit(folder: Path, kind: type, lightning: Any, stop: int | None = None, **options: Any) -> tuple[Any, Any]:
    recovery, rates = CheckpointRecovery(folder, every_n_train_steps=1, async_save=False), Rates(stop)
    swa = lightning.callbacks.StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=3, annealing_epochs=2, **options)
    fitted = make_module(lightning, kind)
    pl_trainer = make_trainer(lightning, callbacks=[recovery, swa, rates], max_epochs=EPOCHS)
    try:
        pl_trainer.fit(
            fitted,
            resumable(make_loader(2 * STEPS_PER_EPOCH, shuffle=True), seed=1),
            ckpt_path=recovery.latest_checkpoint(),
        )
    except KeyError:
        assert stop is not None
    return fitted, rates.rates


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lightning", "kind", "strategy", "steps"),
    [
        (pl, Normalized, "cos", range(1, EPOCHS * STEPS_PER_EPOCH + 1)),
        (pl, Scheduled, "cos", [7, 9, 10, 15]),
        (pl, Scheduled, "linear", [8, 15]),
        (LIGHTNING_PYTORCH, Normalized, "linear", [8, 15]),
    ],
)
def test_averaging_resumes_bit_for_bit_after_every_step(
    lightning: Any, kind: type, strategy: str, steps: Any, tmp_path: Path
):
    expected, rates = fit(tmp_path / "whole", kind, lightning, annealing_strategy=strategy)
    assert len(set(rates.values())) > 3
    for step in steps:
        folder = tmp_path / str(step)
        _, before = fit(folder, kind, lightning, stop=step, annealing_strategy=strategy)
        resumed, after = fit(folder, kind, lightning, annealing_strategy=strategy)
        assert {**before, **after} == rates, step
        assert before.keys() | after.keys() == rates.keys()
        assert all(map(torch.equal, resumed.state_dict().values(), expected.state_dict().values())), step
