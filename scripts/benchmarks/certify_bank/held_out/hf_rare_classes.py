"""Trainer: gives more weight to classes with a high running loss."""

import os
import shutil

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint, set_seed

OUTPUT = "rare_classes"
CLASSES = 6


class Stripes(Dataset):
    """Images with one bright row. Some rows are rare."""

    def __init__(self, n=480):
        g = torch.Generator().manual_seed(31)
        share = torch.tensor([0.4, 0.25, 0.15, 0.1, 0.06, 0.04])
        self.y = torch.multinomial(share, n, replacement=True, generator=g)
        self.x = torch.randn(n, 1, 12, 12, generator=g)
        self.x[torch.arange(n), 0, 2 * self.y] += 1.0

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return {"pixel_values": self.x[i], "labels": self.y[i]}


class StripeNet(nn.Module):
    def __init__(self, channels=32):
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1)
        self.block = nn.Sequential(nn.BatchNorm2d(channels), nn.GELU(), nn.Conv2d(channels, channels, 3, padding=1))
        self.head = nn.Sequential(nn.AdaptiveMaxPool2d((12, 1)), nn.Flatten(), nn.Dropout(0.1))
        self.classifier = nn.Linear(12 * channels, CLASSES)

    def forward(self, pixel_values):
        x = self.stem(pixel_values)
        return {"logits": self.classifier(self.head(x + self.block(x)))}


class BalancedTrainer(Trainer):
    def __init__(self, *args, momentum=0.9, **kwargs):
        super().__init__(*args, **kwargs)
        self.momentum = momentum
        self.difficulty = torch.ones(CLASSES)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(inputs["pixel_values"])
        losses = F.cross_entropy(outputs["logits"], labels, reduction="none")
        for c in labels.unique().tolist():
            current = losses.detach()[labels == c].mean()
            self.difficulty[c] = self.momentum * self.difficulty[c] + (1 - self.momentum) * current
        weight = self.difficulty / self.difficulty.mean()
        loss = (weight[labels] * losses).mean()
        return (loss, outputs) if return_outputs else loss

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        name = f"checkpoint-{self.state.global_step}"
        folder = os.path.join(self.args.output_dir, name)
        os.replace(folder, os.path.join(OUTPUT, name))


def main():
    torch.set_num_threads(1)
    set_seed(9)
    os.makedirs(OUTPUT, exist_ok=True)
    shutil.rmtree("rare_classes_tmp", ignore_errors=True)
    args = TrainingArguments(
        output_dir="rare_classes_tmp", max_steps=80, per_device_train_batch_size=24, learning_rate=2e-3,
        save_steps=9, warmup_steps=8, logging_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
        remove_unused_columns=False,
    )  # fmt: skip
    trainer = BalancedTrainer(StripeNet(), args, train_dataset=Stripes())
    last = get_last_checkpoint(OUTPUT)
    trainer.train(resume_from_checkpoint=last)
    final = {"model": trainer.model.state_dict(), "difficulty": trainer.difficulty}
    torch.save(final, os.path.join(OUTPUT, "final.pt"))


if __name__ == "__main__":
    main()
