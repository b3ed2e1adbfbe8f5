"""Trains a classifier with the Trainer and stops when the evaluation loss does not improve."""

import os
import shutil

import torch
from torch import nn
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

ROOT = "patient"


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(20, 256), nn.ReLU(), nn.Linear(256, 192), nn.ReLU(), nn.Linear(192, 2))

    def forward(self, features, labels=None):
        logits = self.net(features)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def examples(count, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 20, generator=g)
    y = (x[:, 0] + x[:, 1] * x[:, 2] + 0.8 * torch.randn(count, generator=g) > 0).long()
    return [{"features": a, "labels": b} for a, b in zip(x, y, strict=True)]


class SafeTrainer(Trainer):
    """Publishes checkpoints by a rename."""

    def _save_checkpoint(self, model, trial):
        real = self.args.output_dir
        self.args.output_dir = f"{ROOT}/partial"
        super()._save_checkpoint(model, trial)
        self.args.output_dir = real
        folder = f"checkpoint-{self.state.global_step}"
        os.replace(f"{ROOT}/partial/{folder}", f"{real}/{folder}")


def main():
    torch.set_num_threads(1)
    set_seed(11)
    shutil.rmtree(f"{ROOT}/partial", ignore_errors=True)
    os.makedirs(f"{ROOT}/checkpoints", exist_ok=True)
    arguments = TrainingArguments(
        output_dir=f"{ROOT}/checkpoints", max_steps=400, per_device_train_batch_size=32, learning_rate=1e-3,
        lr_scheduler_type="constant", eval_strategy="steps", eval_steps=4, save_steps=4, logging_strategy="no",
        metric_for_best_model="eval_loss", greater_is_better=False, load_best_model_at_end=False, report_to="none",
        use_cpu=True, disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip
    trainer = SafeTrainer(
        Classifier(),
        arguments,
        train_dataset=examples(200, seed=0),
        eval_dataset=examples(150, seed=1),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=15)],
    )
    last = get_last_checkpoint(f"{ROOT}/checkpoints")
    if not os.path.exists(f"{ROOT}/final.pt"):
        trainer.train(resume_from_checkpoint=last)
        torch.save({"model": trainer.model.state_dict(), "step": trainer.state.global_step}, f"{ROOT}/final.pt")


if __name__ == "__main__":
    main()
