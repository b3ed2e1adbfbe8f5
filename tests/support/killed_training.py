"""Training runs in other processes that use an object store and are killed by a signal."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch

from tests.support import forked_command
from tests.support.object_stores import S3Server

SCRIPT = """
import os, signal, sys
import pytorch_lightning as pl, torch
from torch.utils.data import DataLoader, TensorDataset
from stormproof import CheckpointRecovery, Preemption, resumable

checkpoints, mirror, weights_file = sys.argv[1], sys.argv[2] or None, sys.argv[3]
kill_step, number, ranks, grace_seconds = map(int, sys.argv[4:])


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Dropout(), torch.nn.Linear(16, 1))

    def training_step(self, batch, index):
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 0.01)


class Kill(pl.Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == kill_step:
            if number == signal.SIGKILL:
                if trainer.is_global_zero:
                    recovery.save_coordinator.writer.wait_until_free()
                recovery.finish_mirror(60)
                trainer.strategy.barrier()
            if trainer.is_global_zero:
                open(weights_file + ".signal", "w").close()
            os.kill(os.getpid(), number)


pl.seed_everything(0)
loader = DataLoader(TensorDataset(torch.randn(48, 4)), batch_size=4, shuffle=True)
recovery = CheckpointRecovery(checkpoints, every_n_train_steps=2, mirror=mirror)
trainer = pl.Trainer(
    max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    accelerator="cpu", devices=ranks, strategy="ddp" if ranks > 1 else "auto",
    callbacks=[Kill(), Preemption(grace_seconds=grace_seconds), recovery],
)
module = Module()
trainer.fit(module, resumable(loader), ckpt_path=recovery.latest_checkpoint())
print("resumed from", recovery.resumed_from.step if recovery.resumed_from else None)
if trainer.is_global_zero:
    torch.save(module.state_dict(), weights_file)
"""


def train_and_kill(
    folder: Path,
    server: S3Server,
    checkpoints: str,
    *,
    mirror: str = "",
    kill_step: int = 0,
    number: int = signal.SIGKILL,
    ranks: int = 1,
    grace_seconds: int = 60,
    endpoint: str | None = None,
) -> int:
    """Trains 24 optimizer steps and writes ``weights.pt``. Returns the exit status.

    Args:
        folder: Existing folder for the weights, which is also the temporary folder of the process.
        server: S3 server.
        checkpoints: First argument of ``CheckpointRecovery``.
        mirror: URL of a mirror. Empty to disable it.
        kill_step: Step at which each rank receives the signal, after a commit. 0 to disable it.
        number: Signal.
        ranks: Number of ranks.
        grace_seconds: Argument of ``Preemption``.
        endpoint: Address of a proxy in front of the server. The server itself if None.
    """
    script = folder / "train.py"
    script.write_text(SCRIPT)
    arguments = [checkpoints, mirror, str(folder / "weights.pt"), str(kill_step), str(int(number)), str(ranks)]
    arguments.append(str(grace_seconds))
    environment = {**os.environ, **server.environment(endpoint), "TMPDIR": str(folder)}
    result = forked_command.run(arguments, cwd=folder, env=environment, timeout=200, script=script, ranks=ranks)
    assert result.returncode in {0, -signal.SIGKILL, 75}, result.stderr
    return result.returncode


def have_equal_weights(folder: Path, other: Path) -> bool:
    """Returns whether two runs ended with bit-identical weights."""
    weights, expected = (torch.load(path / "weights.pt") for path in (folder, other))
    return weights.keys() == expected.keys() and all(torch.equal(weights[name], expected[name]) for name in expected)
