"""A resume restores what Lightning's tuner callbacks found, and does not run them again."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from stormproof import CheckpointRecovery, resumable
from stormproof.testing import FaultInjector
from tests.support.small_fits import (
    BOTH_PACKAGES,
    LIGHTNING_WARNING_FILTERS,
    RegressionModule,
    make_loader,
    make_module,
    make_trainer,
)

pytestmark = [*LIGHTNING_WARNING_FILTERS, pytest.mark.filterwarnings("ignore:The .* does not have many workers")]


class Tuned(RegressionModule):
    """A module whose learning rate and batch size can be tuned."""

    lr, batch_size = 0.001, 2

    def train_dataloader(self) -> Any:
        return resumable(make_loader(48, batch_size=self.batch_size, shuffle=True), seed=0)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)  # type: ignore[attr-defined]
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


def make_milestone_finder(base: Any) -> Any:
    class MilestoneFinder(base):
        """Tunes at the start of the second epoch."""

        def on_fit_start(self, *_: Any) -> None: ...

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                self.lr_find(trainer, pl_module)

    return MilestoneFinder(num_training_steps=30, early_stop_threshold=None)


FINDERS = {
    "learning rate": lambda callbacks: callbacks.LearningRateFinder(num_training_steps=30),
    "batch size": lambda callbacks: callbacks.BatchSizeFinder(max_trials=2, steps_per_trial=1),
    "milestone": lambda callbacks: make_milestone_finder(callbacks.LearningRateFinder),
}


@BOTH_PACKAGES
@pytest.mark.parametrize("name", FINDERS)
def test_a_run_with_a_tuner_callback_resumes_exactly(name: str, lightning: Any, tmp_path: Path):
    def fit(folder: Path, *faults: Any) -> tuple[Any, Any]:
        recovery, finder = CheckpointRecovery(folder, every_n_train_steps=5), FINDERS[name](lightning.callbacks)
        callbacks = [finder, recovery] if lightning is pl else [recovery, finder]
        trainer = make_trainer(lightning, callbacks=[*callbacks, *faults], max_epochs=3, default_root_dir=tmp_path)
        module = make_module(lightning, Tuned)
        trainer.fit(module, ckpt_path=recovery.latest_checkpoint())
        return trainer, module

    expected_trainer, expected = fit(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="injected fault"):
        fit(tmp_path / "interrupted", FaultInjector().fail(step=expected_trainer.num_training_batches + 2))
    trainer, module = fit(tmp_path / "interrupted")
    assert torch.equal(expected.layer.weight, module.layer.weight)
    assert (module.lr, module.batch_size) == (expected.lr, expected.batch_size)
    assert (module.lr, module.batch_size) != (Tuned.lr, Tuned.batch_size)
    assert trainer.global_step == expected_trainer.global_step
