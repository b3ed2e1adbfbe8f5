"""Trainer: a student learns the features of a wide random teacher through a projector."""

import os
import shutil
import sys

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint


def mlp(*sizes):
    layers = []
    for i, o in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(i, o), nn.GELU()]
    return nn.Sequential(*layers[:-1])


class Student(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = mlp(60, 512, 512, 64)

    def forward(self, x):
        return {"features": self.trunk(x)}


class DistillationTrainer(Trainer):
    def __init__(self, model, *args, teacher, **kwargs):
        super().__init__(model, *args, **kwargs)
        self.teacher = teacher.eval().requires_grad_(False)
        self.projector = mlp(64, 128, 200)

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            parameters = [*self.model.trunk.parameters(), *self.projector.parameters()]
            self.optimizer = torch.optim.AdamW(parameters, lr=self.args.learning_rate)
        return self.optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(inputs["x"])
        loss = nn.functional.mse_loss(self.projector(outputs["features"]), self.teacher(inputs["x"]))
        return (loss, outputs) if return_outputs else loss


class Rename(TrainerCallback):
    """Checkpoints appear under their final name when all files are written."""

    def on_save(self, args, state, control, **kwargs):
        source = os.path.join(args.output_dir, f"checkpoint-{state.global_step}")
        os.replace(source, source.replace("writing", "done"))


def main():
    torch.set_num_threads(1)
    set_seed(14)
    shutil.rmtree("distill/writing", ignore_errors=True)
    os.makedirs("distill/done", exist_ok=True)
    x = torch.randn(640, 60, generator=torch.Generator().manual_seed(14))
    teacher = mlp(60, 400, 200)
    args = TrainingArguments(
        output_dir="distill/writing",
        num_train_epochs=5,
        per_device_train_batch_size=32,
        learning_rate=2e-3,
        max_grad_norm=0.5,
        save_steps=12,
        logging_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=[],
    )
    trainer = DistillationTrainer(
        Student(), args, train_dataset=[{"x": row} for row in x], callbacks=[Rename()], teacher=teacher
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint("distill/done"))
    torch.save({"student": trainer.model.trunk.state_dict()}, "distill/final.pt")


if __name__ == "__main__":
    sys.exit(main())
