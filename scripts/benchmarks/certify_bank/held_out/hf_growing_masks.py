"""Trainer: masked language model. A callback masks more tokens from step to step."""

import os
import shutil

import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import get_last_checkpoint

MASK = 1


class Masking(nn.Module):
    """Replaces tokens by the mask before the model sees them."""

    def __init__(self, config):
        super().__init__()
        self.model = BertForMaskedLM(config)
        self.share = 0.0

    def forward(self, input_ids):
        hidden = torch.rand(input_ids.shape) < self.share
        hidden[:, 0] = True
        labels = torch.where(hidden, input_ids, -100)
        return {"loss": self.model(torch.where(hidden, MASK, input_ids), labels=labels).loss}


class Growth(TrainerCallback, ExportableState):
    def __init__(self, first=0.1, factor=1.03, limit=0.5):
        self.first, self.factor, self.limit = first, factor, limit
        self.share = first
        self.steps_at_limit = 0

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        model.share = self.share

    def on_step_end(self, args, state, control, **kwargs):
        if self.share < self.limit:
            self.share *= self.factor
        else:
            self.steps_at_limit += 1
            if self.steps_at_limit == 10:
                self.share, self.steps_at_limit = self.first, 0

    def state(self):
        return {
            "args": {"first": self.first, "factor": self.factor, "limit": self.limit},
            "attributes": {"share": self.share, "steps_at_limit": self.steps_at_limit},
        }


class SafeTrainer(Trainer):
    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        name = f"checkpoint-{self.state.global_step}"
        os.replace(os.path.join("masks_new", name), os.path.join("masks", name))


def main():
    torch.set_num_threads(1)
    set_seed(5)
    shutil.rmtree("masks_new", ignore_errors=True)
    os.makedirs("masks", exist_ok=True)
    g = torch.Generator().manual_seed(0)
    start, stride = torch.randint(0, 40, (400, 1), generator=g), torch.randint(1, 4, (400, 1), generator=g)
    ids = 2 + (start + stride * torch.arange(16)) % 40
    config = BertConfig(
        vocab_size=42, hidden_size=40, num_hidden_layers=2, num_attention_heads=4, intermediate_size=80,
        max_position_embeddings=16, tie_word_embeddings=False,
    )  # fmt: skip
    args = TrainingArguments(
        output_dir="masks_new", num_train_epochs=5, per_device_train_batch_size=25, learning_rate=3e-3, save_steps=7,
        logging_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True, seed=5,
        restore_callback_states_from_checkpoint=True, remove_unused_columns=False, label_names=[],
    )  # fmt: skip
    trainer = SafeTrainer(
        Masking(config), args, train_dataset=[{"input_ids": row} for row in ids], callbacks=[Growth()]
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint("masks"))
    torch.save({"model": trainer.model.state_dict(), "share": trainer.model.share}, "masks/final.pt")


if __name__ == "__main__":
    main()
