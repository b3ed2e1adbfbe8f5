"""Trains a tiny GPT-2 on counting sequences with the Trainer."""

import argparse
import os
import shutil

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint


class Counting(torch.utils.data.Dataset):
    def __len__(self):
        return 480

    def __getitem__(self, index):
        g = torch.Generator().manual_seed(index)
        start, stride = torch.randint(0, 50, (1,), generator=g), torch.randint(1, 5, (1,), generator=g)
        ids = (start + stride * torch.arange(18)) % 50
        return {"input_ids": ids, "labels": ids}


class Publish(TrainerCallback):
    """Moves a complete checkpoint from the staging folder to the final one."""

    def __init__(self, source, target):
        self.source, self.target = source, target

    def on_save(self, args, state, control, **kwargs):
        name = f"checkpoint-{state.global_step}"
        os.replace(os.path.join(self.source, name), os.path.join(self.target, name))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--output", default="gpt2")
    args = parser.parse_args()
    torch.set_num_threads(1)
    set_seed(3)
    staging = args.output + "_staging"
    shutil.rmtree(staging, ignore_errors=True)
    os.makedirs(args.output, exist_ok=True)
    config = GPT2Config(
        vocab_size=50, n_positions=18, n_embd=48, n_layer=2, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    training = TrainingArguments(
        output_dir=staging,
        num_train_epochs=args.epochs,
        per_device_train_batch_size=args.batch_size,
        learning_rate=3e-3,
        save_steps=7,
        logging_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        ignore_data_skip=True,
        seed=3,
    )
    model = GPT2LMHeadModel(config)
    trainer = Trainer(model, training, train_dataset=Counting(), callbacks=[Publish(staging, args.output)])
    trainer.train(resume_from_checkpoint=get_last_checkpoint(args.output))
    torch.save({"model": model.state_dict()}, os.path.join(args.output, "final.pt"))


if __name__ == "__main__":
    main()
