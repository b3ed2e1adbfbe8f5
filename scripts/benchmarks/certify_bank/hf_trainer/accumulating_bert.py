"""Trains a tiny BERT for masked words with gradient accumulation, a cosine schedule and a stateful callback."""

import json
import os
import shutil

import torch
from torch.utils.data import Dataset
from transformers import BertConfig, BertForMaskedLM, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

FOLDER, WRITING = "masked_bert", "masked_bert_writing"


class Masked(Dataset):
    """Masks words by a rule that depends on the index."""

    def __len__(self):
        return 512

    def __getitem__(self, index):
        g = torch.Generator().manual_seed(index)
        ids = (torch.randint(1, 40, (1,), generator=g) + 3 * torch.arange(14)) % 60 + 1
        hidden = torch.rand(14, generator=g) < 0.25
        return {"input_ids": ids.masked_fill(hidden, 0), "labels": ids.masked_fill(~hidden, -100)}


class Brake(TrainerCallback):
    """Halves the gradients if their norm is above its moving average."""

    def __init__(self, model):
        self.model = model
        self.norm = 1.0

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients).item()
        if norm > self.norm:
            torch._foreach_mul_(gradients, 0.5)
        self.norm += 0.1 * (norm - self.norm)

    def on_save(self, args, state, control, **kwargs):
        folder = os.path.join(WRITING, f"checkpoint-{state.global_step}")
        with open(os.path.join(folder, "brake.json"), "w") as file:
            json.dump(self.norm, file)
        os.replace(folder, os.path.join(FOLDER, os.path.basename(folder)))

    def load(self, folder):
        with open(os.path.join(folder, "brake.json")) as file:
            self.norm = json.load(file)


def main():
    torch.set_num_threads(1)
    set_seed(8)
    shutil.rmtree(WRITING, ignore_errors=True)
    os.makedirs(FOLDER, exist_ok=True)
    config = BertConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=14,
    )  # fmt: skip
    arguments = TrainingArguments(
        output_dir=WRITING, num_train_epochs=3, per_device_train_batch_size=8, gradient_accumulation_steps=3,
        learning_rate=3e-3, lr_scheduler_type="cosine", warmup_steps=6, save_steps=5, logging_strategy="no",
        report_to="none", use_cpu=True, disable_tqdm=True, seed=8,
    )  # fmt: skip
    model = BertForMaskedLM(config)
    brake = Brake(model)
    last = get_last_checkpoint(FOLDER)
    if last is not None:
        brake.load(last)
    trainer = Trainer(model, arguments, train_dataset=Masked(), callbacks=[brake])
    trainer.train(resume_from_checkpoint=last)
    torch.save({"model": model.state_dict()}, os.path.join(FOLDER, "final.pt"))


if __name__ == "__main__":
    main()
