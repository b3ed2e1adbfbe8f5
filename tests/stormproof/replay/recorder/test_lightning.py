"""The recorder in Lightning."""

from pathlib import Path

import pytorch_lightning  # noqa: F401 (the forks that run the programs import it quickly)

from tests.support.recorded_program import record

PROGRAM = """
import warnings
from pathlib import Path
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

warnings.simplefilter("ignore")

class Counter(pl.Callback):
    def __init__(self):
        self.batches = 0
    def on_train_batch_end(self, *arguments):
        self.batches += 1

class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer, self.difficulty = torch.nn.Linear(2, 1), 1
    def training_step(self, batch):
        return self.layer(batch[0]).square().mean()
    def validation_step(self, batch):
        self.log("val", self.layer(batch[0]).mean())
    def on_train_epoch_end(self):
        self.difficulty += 1
    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), 0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

pl.seed_everything(0)
data = TensorDataset(torch.randn(8, 2))
checkpoint = pl.callbacks.ModelCheckpoint(dirpath="checkpoints", save_last=True)
trainer = pl.Trainer(max_epochs=MAX_EPOCHS, accelerator="cpu", logger=False, enable_progress_bar=False,
    enable_model_summary=False, callbacks=[Counter(), checkpoint], accumulate_grad_batches=ACCUMULATE)
loaders = DataLoader(data, batch_size=2, shuffle=True), DataLoader(data, batch_size=4)
last = Path("checkpoints/last.ckpt")
trainer.fit(Module(), *loaders, ckpt_path=last if last.exists() else None)
"""


def make_program(max_epochs: int = 2, accumulate: int = 1) -> str:
    return PROGRAM.replace("MAX_EPOCHS", str(max_epochs)).replace("ACCUMULATE", str(accumulate))


def test_steps_of_a_trainer_are_recorded(tmp_path: Path) -> None:
    ledger = record(tmp_path / "run", make_program())

    assert len(ledger.steps) == 8
    step = ledger.steps[5]
    assert {"gradients", "loss", "data/indices", "scheduler/StepLR", "optimizer/Adam", "mode"} <= set(step.components)
    assert len({step.components["gradients"] for step in ledger.steps}) == 8
    assert step.values["variables/Counter.batches"] == "5"
    assert step.values["variables/callback ModelCheckpoint.save_last"] == "True"
    assert step.values["variables/Module.difficulty"] == "2"
    assert not any("_" in name.split(".")[-1][:1] for name in step.values if ".Module." in name)
    assert sum(len(step.batches) for step in ledger.steps) == 8  # without those of the validations
    assert ledger.validations == (4, 8)
    last = [save for save in ledger.saves if Path(save.path).name == "last.ckpt"]
    assert {save.after_step for save in last} == {4, 8}
    assert "pytorch_lightning" in ledger.start.packages


def test_resumed_trainer_has_the_parameters_of_the_uninterrupted_one(tmp_path: Path) -> None:
    uninterrupted = record(tmp_path / "uninterrupted", make_program(accumulate=2))
    first = record(tmp_path / "run", make_program(max_epochs=1, accumulate=2))

    resumed = record(tmp_path / "run", make_program(accumulate=2))

    assert len(first.steps) == 2
    assert [Path(load.path).name for load in resumed.loads][-1:] == ["last.ckpt"]
    assert resumed.loads[-1].path in {save.path for save in first.saves}
    for name in ("parameters", "optimizer/Adam"):
        assert resumed.before[0].components[name] == first.steps[-1].components[name]
        assert resumed.before[0].components[name] == uninterrupted.steps[1].components[name]
    # Lightning does not restore random states, so the order of the data differs
    assert resumed.steps[0].indices != uninterrupted.steps[2].indices
    assert [step.components["data/count"] for step in uninterrupted.steps] == [2, 2, 2, 2]
