"""Trainer: a small Vision Transformer recognizes shapes."""

import argparse
import os
import shutil

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTConfig, ViTForImageClassification, set_seed
from transformers.trainer_utils import get_last_checkpoint

SIDE = 16


class Shapes(Dataset):
    """Squares, crosses and rings at random places under noise."""

    def __init__(self, n=420):
        g = torch.Generator().manual_seed(40)
        self.kind = torch.randint(0, 3, (n,), generator=g)
        centre = torch.randint(4, SIDE - 4, (2, n, 1, 1), generator=g)
        axis = torch.arange(SIDE)
        dy, dx = (axis[:, None] - centre[0]).abs(), (axis[None, :] - centre[1]).abs()
        far, near = torch.maximum(dy, dx), torch.minimum(dy, dx)
        shapes = torch.stack([far <= 2, (near == 0) & (far <= 3), far == 3])
        self.images = shapes[self.kind, torch.arange(n)][:, None] + 0.7 * torch.randn(n, 1, SIDE, SIDE, generator=g)

    def __len__(self):
        return len(self.kind)

    def __getitem__(self, i):
        return {"pixel_values": self.images[i], "labels": self.kind[i]}


class Finish(TrainerCallback):
    def __init__(self, root):
        self.root = root

    def on_save(self, args, state, control, **kwargs):
        name = f"checkpoint-{state.global_step}"
        shutil.rmtree(f"{self.root}/{name}", ignore_errors=True)
        os.replace(f"{args.output_dir}/{name}", f"{self.root}/{name}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", default="vit_shapes")
    parser.add_argument("--epochs", type=float, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    set_seed(40)
    os.makedirs(options.root, exist_ok=True)
    last = get_last_checkpoint(options.root)
    shutil.rmtree(f"{options.root}/partial", ignore_errors=True)
    config = ViTConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, image_size=SIDE,
        patch_size=4, num_channels=1, num_labels=3,
    )  # fmt: skip
    model = ViTForImageClassification(config)
    arguments = TrainingArguments(
        output_dir=f"{options.root}/partial", num_train_epochs=options.epochs, per_device_train_batch_size=20,
        learning_rate=1e-3, weight_decay=0.05, save_steps=8, logging_strategy="no", report_to="none", use_cpu=True,
        disable_tqdm=True, seed=40,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=Shapes(), callbacks=[Finish(options.root)])
    trainer.train(resume_from_checkpoint=last)
    torch.save({"model": model.state_dict()}, f"{options.root}/final.pt")


if __name__ == "__main__":
    main()
