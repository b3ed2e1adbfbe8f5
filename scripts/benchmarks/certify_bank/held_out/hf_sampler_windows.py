"""Trainer: classifies windows of sensor data. A sampler mixes the recordings anew in each epoch."""

import os
import shutil

import torch
from torch import nn
from torch.utils.data import Dataset, Sampler
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint


class Windows(Dataset):
    def __init__(self, recordings=30, per_recording=20, width=48):
        g = torch.Generator().manual_seed(2)
        activity = torch.randint(0, 4, (recordings,), generator=g)
        self.label = activity.repeat_interleave(per_recording)
        phase = 6 * torch.rand(len(self.label), 1, generator=g)
        wave = torch.sin(phase + (2 + self.label[:, None]) * torch.linspace(0, 5, width))
        self.x = wave + 1.2 * torch.randn(wave.shape, generator=g)
        self.per_recording = per_recording

    def __len__(self):
        return len(self.label)

    def __getitem__(self, i):
        return {"x": self.x[i], "labels": self.label[i]}


class RecordingSampler(Sampler):
    """Visits the recordings in random order and the windows of each recording in turn."""

    def __init__(self, data, seed):
        self.data, self.seed, self.epoch = data, seed, 0

    def __len__(self):
        return len(self.data)

    def __iter__(self):
        g = torch.Generator().manual_seed(self.seed + self.epoch)
        size = self.data.per_recording
        starts = size * torch.randperm(len(self.data) // size, generator=g)
        for group in starts.split(10):
            for offset in range(size):
                yield from (group + offset).tolist()


class NextEpoch(TrainerCallback):
    def __init__(self, sampler):
        self.sampler = sampler

    def on_epoch_end(self, args, state, control, **kwargs):
        self.sampler.epoch += 1


class WindowNet(nn.Module):
    def __init__(self, width=48):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(width, 640), nn.ReLU(), nn.Linear(640, 640), nn.ReLU(), nn.Linear(640, 4))

    def forward(self, x, labels):
        logits = self.body(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class WindowTrainer(Trainer):
    sampler = None

    def _get_train_sampler(self, train_dataset=None):
        return self.sampler

    def _save_checkpoint(self, model, trial):
        target = self.args.output_dir
        self.args.output_dir = target + ".incoming"
        super()._save_checkpoint(model, trial)
        name = f"checkpoint-{self.state.global_step}"
        os.replace(os.path.join(self.args.output_dir, name), os.path.join(target, name))
        self.args.output_dir = target


if __name__ == "__main__":
    torch.set_num_threads(1)
    set_seed(10)
    out = "windows"
    os.makedirs(out, exist_ok=True)
    shutil.rmtree(out + ".incoming", ignore_errors=True)
    data = Windows()
    sampler = RecordingSampler(data, seed=10)
    args = TrainingArguments(
        out, num_train_epochs=7, per_device_train_batch_size=30, learning_rate=1e-3, save_steps=9,
        logging_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip
    trainer = WindowTrainer(WindowNet(), args, train_dataset=data, callbacks=[NextEpoch(sampler)])
    trainer.sampler = sampler
    trainer.train(resume_from_checkpoint=get_last_checkpoint(out))
    torch.save({"weights": trainer.model.state_dict()}, os.path.join(out, "final.pt"))
