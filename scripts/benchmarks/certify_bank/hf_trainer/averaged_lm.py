"""Trains a small language model with the Trainer and keeps a moving average of its weights in a callback."""

import os
import shutil

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

OUTPUT = "averaged_lm"


class WindowLM(nn.Module):
    """Predicts a symbol from the eight symbols before it."""

    def __init__(self, symbols=30, width=48):
        super().__init__()
        self.embed = nn.Embedding(symbols, width)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(8 * width, 192), nn.ReLU(), nn.Linear(192, symbols))

    def forward(self, window, labels=None):
        logits = self.net(self.embed(window))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class AverageCallback(TrainerCallback):
    def __init__(self, decay=0.95):
        self.decay = decay
        self.weights = None

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.weights = {name: value.detach().clone() for name, value in model.named_parameters()}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        for name, value in model.named_parameters():
            self.weights[name].lerp_(value.detach(), 1 - self.decay)

    def on_save(self, args, state, control, **kwargs):
        folder = os.path.join(args.output_dir, f"checkpoint-{state.global_step}")
        torch.save(self.weights, os.path.join(folder, "average.bin"))
        os.replace(folder, os.path.join(OUTPUT, os.path.basename(folder)))


def windows(count=900):
    text = [0, 1]
    for i in range(count + 10):
        text.append((text[-1] + 2 * text[-2] + i // 50) % 30)
    ids = torch.tensor(text)
    return [{"window": ids[i : i + 8], "labels": ids[i + 8]} for i in range(count)]


def main():
    torch.set_num_threads(1)
    set_seed(5)
    shutil.rmtree(OUTPUT + "_writing", ignore_errors=True)
    os.makedirs(OUTPUT, exist_ok=True)
    arguments = TrainingArguments(
        output_dir=OUTPUT + "_writing", max_steps=100, per_device_train_batch_size=48, learning_rate=2e-3,
        lr_scheduler_type="cosine", save_steps=8, logging_strategy="no", report_to="none", use_cpu=True,
        disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip
    average = AverageCallback()
    trainer = Trainer(WindowLM(), arguments, train_dataset=windows(), callbacks=[average])
    trainer.train(resume_from_checkpoint=get_last_checkpoint(OUTPUT))
    torch.save({"model": trainer.model.state_dict(), "average": average.weights}, os.path.join(OUTPUT, "final.pt"))


if __name__ == "__main__":
    main()
