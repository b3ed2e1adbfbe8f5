"""Lightning: regression with an auxiliary loss. Its weight grows when the main loss stops to improve."""

from argparse import ArgumentParser
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Sampler, TensorDataset


class PerEpochPermutation(Sampler):
    def __init__(self, n, seed=0):
        self.n, self.seed, self.epoch = n, seed, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.n

    def __iter__(self):
        g = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(torch.randperm(self.n, generator=g).tolist())


class SimDataModule(pl.LightningDataModule):
    def __init__(self, n=900, batch_size=60):
        super().__init__()
        self.n, self.batch_size = n, batch_size

    def setup(self, stage):
        g = torch.Generator().manual_seed(0)
        x = torch.randn(self.n, 40, generator=g)
        y = (x[:, :5].sin().sum(1) + x[:, 5] * x[:, 6])[:, None] + 0.5 * torch.randn(self.n, 1, generator=g)
        self.data = TensorDataset(x, y)

    def train_dataloader(self):
        sampler = PerEpochPermutation(self.n)
        return DataLoader(self.data, self.batch_size, sampler=sampler, generator=torch.Generator().manual_seed(0))


class Regressor(pl.LightningModule):
    def __init__(self, hidden=768):
        super().__init__()
        self.trunk = torch.nn.Sequential(
            torch.nn.Linear(40, hidden), torch.nn.SiLU(), torch.nn.Linear(hidden, hidden), torch.nn.SiLU()
        )
        self.value = torch.nn.Linear(hidden, 1)
        self.copy = torch.nn.Linear(hidden, 40)
        self.auxiliary = 0.1
        self.main_losses = []

    def training_step(self, batch, batch_idx):
        x, y = batch
        h = self.trunk(x)
        main = F.smooth_l1_loss(self.value(h), y)
        self.main_losses.append(main.item())
        return main + self.auxiliary * F.mse_loss(self.copy(h), x)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=3e-3)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["auxiliary"] = self.auxiliary

    def on_load_checkpoint(self, checkpoint):
        self.auxiliary = checkpoint["auxiliary"]


class Balance(pl.Callback):
    """Doubles the weight of the auxiliary loss after ``patience`` epochs without a new best main loss."""

    def __init__(self, patience=2, min_delta=0.12):
        self.patience, self.min_delta = patience, min_delta
        self.best, self.bad = float("inf"), 0

    def on_train_epoch_end(self, trainer, pl_module):
        mean = sum(pl_module.main_losses) / len(pl_module.main_losses)
        pl_module.main_losses.clear()
        if mean < self.best - self.min_delta:
            self.best, self.bad = mean, 0
        else:
            self.bad += 1
        if self.bad >= self.patience:
            pl_module.auxiliary *= 2
            self.bad = 0
        print(f"epoch {trainer.current_epoch} main {mean:.3f} auxiliary {pl_module.auxiliary:.2f}")


class Keep(pl.Callback):
    def __init__(self, path: Path):
        self.path = path

    def on_train_epoch_end(self, trainer, pl_module):
        part = self.path.with_suffix(".part")
        trainer.save_checkpoint(part)
        part.rename(self.path)


def cli():
    parser = ArgumentParser()
    parser.add_argument("--max_epochs", type=int, default=10)
    parser.add_argument("--ckpt", type=Path, default=Path("two_losses.ckpt"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    pl.seed_everything(3, workers=True)
    model = Regressor()
    trainer = pl.Trainer(
        max_epochs=args.max_epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[Balance(), Keep(args.ckpt)],
    )  # fmt: skip
    trainer.fit(model, datamodule=SimDataModule(), ckpt_path=args.ckpt if args.ckpt.exists() else None)
    torch.save({"model": model.state_dict()}, "two_losses_final.pt")


if __name__ == "__main__":
    cli()
