from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from torch.utils.data import DataLoader

from stormproof.lightning.logging_steps import is_logging_step

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*treespec, LeafSpec.*",
    "ignore:.*does not have many workers.*",
    "ignore:.*number of training batches.*smaller than the logging interval.*",
)


@pytest.mark.parametrize(
    ("every", "expected"),
    [(1, [1, 2, 3, 4, 5, 6, 7]), (3, [3, 6]), (7, [7]), (50, []), (0, [])],
)
def test_every_nth_step_is_one_and_zero_means_never(every: int, expected: list[int]):
    trainer = cast("pl.Trainer", SimpleNamespace(log_every_n_steps=every))
    assert [steps for steps in range(1, 8) if is_logging_step(trainer, steps)] == expected


class _Recorder(Logger):
    name, version = "recorder", 0

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if "steps_done" in metrics:
            assert metrics["steps_done"] == step + 1  # Lightning's step counts from 0 here
            self.steps.append(step + 1)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...


class _Module(pl.LightningModule):
    """Logs the number of the step at each logging step, or at every step."""

    def __init__(self, always: bool) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.always = always

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        if self.always or is_logging_step(self.trainer, self.global_step + 1):
            self.log("steps_done", float(self.global_step + 1))
        return self.layer(batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize(("every", "expected"), [(1, [1, 2, 3, 4, 5, 6]), (2, [2, 4, 6]), (4, [4]), (0, [])])
@pytest.mark.parametrize("always", [True, False], ids=["lightning", "ours"])
def test_our_steps_are_those_at_which_lightning_writes(
    always: bool, every: int, expected: list[int], accumulated: int, tmp_path: Path
):
    recorder = _Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,  # steps are counted on over the epochs
        logger=recorder,
        log_every_n_steps=every,
        accumulate_grad_batches=accumulated,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(_Module(always), DataLoader(torch.ones(3 * accumulated, 1), batch_size=1))
    assert recorder.steps == expected
