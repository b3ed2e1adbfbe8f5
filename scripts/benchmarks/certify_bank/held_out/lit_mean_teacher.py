"""Lightning: semi-supervised classification with a teacher and a student network."""

import copy
import pathlib

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F

FOLDER = pathlib.Path("mean_teacher")


class Semi(torch.utils.data.Dataset):
    """A few labelled rows and many rows without label (-1)."""

    def __init__(self, n=800, labelled=0.1):
        g = torch.Generator().manual_seed(5)
        self.y = torch.randint(0, 5, (n,), generator=g)
        self.x = torch.randn(5, 80, generator=g)[self.y] + 1.5 * torch.randn(n, 80, generator=g)
        self.y[torch.rand(n, generator=g) > labelled] = -1

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return i, self.x[i], self.y[i]


class Sequential(torch.utils.data.Sampler):
    def __init__(self, n):
        self.n, self.shift = n, 0

    def set_epoch(self, epoch):
        self.shift = 131 * epoch

    def __len__(self):
        return self.n

    def __iter__(self):
        return iter([(i + self.shift) % self.n for i in range(self.n)])


class MeanTeacher(pl.LightningModule):
    def __init__(self, decay=0.97, consistency=2.0):
        super().__init__()
        self.decay, self.consistency = decay, consistency
        self.student = nn.Sequential(nn.Linear(80, 768), nn.ReLU(), nn.Linear(768, 768), nn.ReLU(), nn.Linear(768, 5))
        self.teacher = [copy.deepcopy(self.student)]

    def noisy(self, x, indices, view):
        g = torch.Generator().manual_seed(int(indices.sum()) + 100_000 * view + self.current_epoch)
        return x + 0.5 * torch.randn(x.shape, generator=g)

    def training_step(self, batch, batch_idx):
        indices, x, y = batch
        logits = self.student(self.noisy(x, indices, 0))
        with torch.no_grad():
            target = self.teacher[0](self.noisy(x, indices, 1)).softmax(1)
        supervised = F.cross_entropy(logits, y, ignore_index=-1) if (y >= 0).any() else 0.0
        return supervised + self.consistency * F.mse_loss(logits.softmax(1), target)

    @torch.no_grad()
    def on_train_batch_end(self, outputs, batch, batch_idx):
        for t, s in zip(self.teacher[0].parameters(), self.student.parameters(), strict=True):
            t.mul_(self.decay).add_(s, alpha=1 - self.decay)

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.student.parameters(), lr=1e-3)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


class EveryEpoch(pl.Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        trainer.save_checkpoint(FOLDER / "epoch.tmp")
        (FOLDER / "epoch.tmp").replace(FOLDER / "epoch.ckpt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    pl.seed_everything(0)
    FOLDER.mkdir(exist_ok=True)
    data = Semi()
    loader = torch.utils.data.DataLoader(
        data, batch_size=50, sampler=Sequential(len(data)), generator=torch.Generator().manual_seed(0)
    )
    model = MeanTeacher()
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        max_epochs=8, accelerator="cpu", enable_model_summary=False, callbacks=[EveryEpoch()], **options
    )
    last = FOLDER / "epoch.ckpt"
    trainer.fit(model, loader, ckpt_path=str(last) if last.exists() else None)
    torch.save({"student": model.student.state_dict(), "teacher": model.teacher[0].state_dict()}, FOLDER / "final.pt")
