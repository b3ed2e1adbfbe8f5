"""Hugging Face Trainer with its own checkpoints."""

import sys
from pathlib import Path

import torch
from task import BATCH_SIZE, EPOCHS, SAVE_EVERY, Images, Network
from torch import nn
from transformers import Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = Network()

    def forward(self, images, labels):
        logits = self.network(images)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def collate(samples):
    images, labels = zip(*samples, strict=True)
    return {"images": torch.stack(images), "labels": torch.stack(labels)}


def main():
    set_seed(1)
    Path("checkpoints").mkdir(exist_ok=True)  # where get_last_checkpoint searches
    workers = int(sys.argv[1])
    arguments = TrainingArguments(
        output_dir="checkpoints", num_train_epochs=EPOCHS, per_device_train_batch_size=BATCH_SIZE,
        learning_rate=3e-3, save_steps=SAVE_EVERY, dataloader_num_workers=workers, report_to="none", use_cpu=True,
        disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(Classifier(), arguments, data_collator=collate, train_dataset=Images())
    trainer.train(resume_from_checkpoint=get_last_checkpoint("checkpoints"))


if __name__ == "__main__":
    main()
