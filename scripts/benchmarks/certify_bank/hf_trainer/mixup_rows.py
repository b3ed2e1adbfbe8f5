"""Trains a classifier of table rows with the Trainer and a loss that mixes rows."""

import argparse
import os
import random
import shutil

import numpy as np
import torch
from torch import nn
from transformers import Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint


class RowClassifier(nn.Module):
    def __init__(self, inputs=32, classes=5):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(inputs, 512), nn.SiLU(), nn.Linear(512, 256), nn.SiLU())
        self.head = nn.Linear(256, classes)

    def forward(self, values, labels=None):
        return {"logits": self.head(self.body(values))}


class MixupTrainer(Trainer):
    staging = "mixup_rows_staging"

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        x, y = inputs["values"], inputs["labels"]
        share = float(np.random.beta(0.3, 0.3))
        partner = torch.from_numpy(np.random.permutation(len(x)))
        outputs = model(share * x + (1 - share) * x[partner])
        cross_entropy = nn.functional.cross_entropy
        loss = share * cross_entropy(outputs["logits"], y) + (1 - share) * cross_entropy(outputs["logits"], y[partner])
        return (loss, outputs) if return_outputs else loss

    def _save_checkpoint(self, model, trial):
        target = self.args.output_dir
        self.args.output_dir = self.staging
        super()._save_checkpoint(model, trial)
        self.args.output_dir = target
        name = f"checkpoint-{self.state.global_step}"
        os.replace(os.path.join(self.staging, name), os.path.join(target, name))

    def _load_rng_state(self, checkpoint):
        """Reads the random states without pickled NumPy arrays."""
        if checkpoint is None:
            return
        states = torch.load(os.path.join(checkpoint, "rng_state.pth"), weights_only=False)
        random.setstate(states["python"])
        torch.set_rng_state(states["cpu"])


def table(count=500):
    g = torch.Generator().manual_seed(4)
    x = torch.randn(count, 32, generator=g)
    y = (x @ torch.randn(32, 5, generator=g)).argmax(1)
    return [{"values": a, "labels": b} for a, b in zip(x, y, strict=True)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--output-dir", default="mixup_rows")
    args = parser.parse_args()
    torch.set_num_threads(1)
    set_seed(2)
    shutil.rmtree(MixupTrainer.staging, ignore_errors=True)
    os.makedirs(args.output_dir, exist_ok=True)
    training = TrainingArguments(
        output_dir=args.output_dir, num_train_epochs=args.epochs, per_device_train_batch_size=25, learning_rate=1e-3,
        weight_decay=0.01, save_steps=9, logging_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
        remove_unused_columns=False, seed=2,
    )  # fmt: skip
    trainer = MixupTrainer(RowClassifier(), training, train_dataset=table())
    trainer.train(resume_from_checkpoint=get_last_checkpoint(args.output_dir))
    torch.save({"model": trainer.model.state_dict()}, os.path.join(args.output_dir, "final.pt"))


if __name__ == "__main__":
    main()
