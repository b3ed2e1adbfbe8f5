"""Trains a plain module on a regression task with the Trainer and a linear schedule with warm-up."""

import os
import shutil

import torch
from torch import nn
from transformers import Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

FINAL, STAGING = "regression", "regression_partial"


class Net(nn.Module):
    def __init__(self, width=384):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(24, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1)
        )

    def forward(self, x, labels=None):
        prediction = self.layers(x)[:, 0]
        return {"loss": nn.functional.mse_loss(prediction, labels), "prediction": prediction}


def rows(count=600):
    g = torch.Generator().manual_seed(10)
    x = torch.randn(count, 24, generator=g)
    y = x[:, 0] * x[:, 1] + x[:, 2].cos()
    return [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)]


class RegressionTrainer(Trainer):
    def _save_checkpoint(self, model, trial):
        self.args.output_dir = STAGING
        super()._save_checkpoint(model, trial)
        self.args.output_dir = FINAL
        name = f"checkpoint-{self.state.global_step}"
        os.replace(os.path.join(STAGING, name), os.path.join(FINAL, name))

    def _load_optimizer_and_scheduler(self, checkpoint):
        """Loads the moments into the optimizer of this run."""
        if checkpoint is None:
            return
        saved = torch.load(os.path.join(checkpoint, "optimizer.pt"), weights_only=True)
        self.optimizer.load_state_dict(saved)


def main():
    torch.set_num_threads(1)
    set_seed(0)
    shutil.rmtree(STAGING, ignore_errors=True)
    os.makedirs(FINAL, exist_ok=True)
    arguments = TrainingArguments(
        FINAL,
        max_steps=90,
        per_device_train_batch_size=30,
        learning_rate=4e-3,
        lr_scheduler_type="linear",
        warmup_steps=20,
        save_steps=9,
        logging_steps=30,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = RegressionTrainer(model=Net(), args=arguments, train_dataset=rows())
    trainer.train(resume_from_checkpoint=get_last_checkpoint(FINAL))
    torch.save({"model": trainer.model.state_dict()}, os.path.join(FINAL, "final.pt"))


if __name__ == "__main__":
    main()
