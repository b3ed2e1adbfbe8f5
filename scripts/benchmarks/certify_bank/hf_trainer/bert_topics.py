"""Fine-tunes a tiny BERT on generated topics with the Trainer and its own checkpoints."""

import os
import shutil

import torch
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

OUT, STAGING = "bert_topics", "bert_topics_staging"


class Topics(Dataset):
    def __init__(self, size=400, length=16):
        g = torch.Generator().manual_seed(0)
        self.labels = torch.randint(0, 3, (size,), generator=g)
        shared = torch.randint(70, 100, (size, length), generator=g)
        topical = torch.randint(0, 20, (size, length), generator=g) + 20 * self.labels[:, None]
        self.ids = torch.where(torch.rand(size, length, generator=g) < 0.4, topical, shared)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return {"input_ids": self.ids[i], "labels": self.labels[i]}


class AtomicTrainer(Trainer):
    """Writes a checkpoint elsewhere and moves it when it is complete."""

    def _save_checkpoint(self, model, trial):
        final, self.args.output_dir = self.args.output_dir, STAGING
        super()._save_checkpoint(model, trial)
        self.args.output_dir = final
        name = f"checkpoint-{self.state.global_step}"
        os.replace(os.path.join(STAGING, name), os.path.join(final, name))


def main():
    torch.set_num_threads(1)
    set_seed(1)
    shutil.rmtree(STAGING, ignore_errors=True)
    os.makedirs(OUT, exist_ok=True)
    config = BertConfig(
        vocab_size=100, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
        max_position_embeddings=16, num_labels=3,
    )  # fmt: skip
    arguments = TrainingArguments(
        output_dir=OUT, num_train_epochs=4, per_device_train_batch_size=16, learning_rate=2e-3, warmup_steps=10,
        save_steps=8, logging_steps=20, report_to="none", use_cpu=True, disable_tqdm=True, seed=1,
    )  # fmt: skip
    trainer = AtomicTrainer(BertForSequenceClassification(config), arguments, train_dataset=Topics())
    trainer.train(resume_from_checkpoint=get_last_checkpoint(OUT))
    torch.save({"model": trainer.model.state_dict()}, os.path.join(OUT, "final.pt"))


if __name__ == "__main__":
    main()
