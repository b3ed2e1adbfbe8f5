"""A checkpoint is a plain Lightning file: it is read where this package is not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cases import mark_cases

pytestmark = pytest.mark.slow

TRAINING = """
import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset


class Module(pl.LightningModule):
    def __init__(self, width=1):
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(4, width)
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.trainer.current_epoch, batch_idx, self.trainer.global_step))
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


def trainer(epochs, *callbacks):
    return pl.Trainer(
        max_epochs=epochs, callbacks=list(callbacks), logger=False, enable_checkpointing=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False,
    )


loader = DataLoader(TensorDataset(torch.ones(20, 4)), batch_size=4, shuffle=True)
"""

OUR_CALLBACK = """
from stormproof import CheckpointRecovery, resumable
from stormproof.testing import FaultInjector

faults = FaultInjector()
if sys.argv[2] != "99":
    faults.kill(step=int(sys.argv[2]))
recovery = CheckpointRecovery(sys.argv[1], every_n_train_steps=1, async_save=False)
trainer(2, recovery, faults).fit(Module(width=3), resumable(loader))
"""

STOCK_CALLBACK = """
found = sorted(Path(sys.argv[1]).glob("*.ckpt"))[-1]
saved = torch.load(found, weights_only=True)
module = Module.load_from_checkpoint(found, weights_only=True)
assert module.hparams.width == 3
assert all(torch.equal(value, saved["state_dict"][name]) for name, value in module.state_dict().items())
module, trainer = Module(width=3), trainer(3)
trainer.fit(module, loader, ckpt_path=found, weights_only=True)
assert not any(name.partition(".")[0] == "stormproof" for name in sys.modules)
print(module.seen[0], module.seen[-1], len(module.seen), trainer.global_step)
"""

BLOCKED = """
import sys


class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "stormproof":
            raise ModuleNotFoundError(name)


sys.meta_path.insert(0, Blocked())
"""


def run_script(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.parametrize(
    ("killed_at", "first", "steps_left"),
    mark_cases(
        [(4, (0, 3, 3), 12), (5, (0, 4, 4), 11), (6, (1, 0, 5), 10), (8, (1, 2, 7), 8), (99, (2, 0, 10), 5)],
        [(5, (0, 4, 4), 11)],
    ),
)
def test_stock_lightning_goes_on_at_the_right_step(
    killed_at: int, first: tuple[int, int, int], steps_left: int, tmp_path: Path
):
    our_output = run_script(TRAINING + OUR_CALLBACK, tmp_path, killed_at)
    assert our_output.returncode == (0 if killed_at == 99 else -9), our_output.stderr
    stock = run_script(BLOCKED + TRAINING + STOCK_CALLBACK, tmp_path)
    assert stock.returncode == 0, stock.stderr
    assert stock.stdout.endswith(f"{first} {(2, 4, 14)} {steps_left} 15\n")
