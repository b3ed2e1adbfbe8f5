"""Trainer: a tiny DistilBERT. Lower layers stop to learn after the first part of the training."""

import dataclasses
import pathlib
import shutil

import torch
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    HfArgumentParser,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint


@dataclasses.dataclass
class Options:
    out: str = "gradual"
    epochs: int = 4
    embeddings_until: int = 18
    first_layer_until: int = 45
    seed: int = 4


class LowerLayers(TrainerCallback):
    def __init__(self, model, options):
        bert = model.distilbert
        self.plan = [
            (options.embeddings_until, bert.embeddings),
            (options.first_layer_until, bert.transformer.layer[0]),
        ]

    def on_step_begin(self, args, state, control, **kwargs):
        for step, module in self.plan:
            if state.global_step == step:
                module.requires_grad_(False)


class MoveWhenComplete(TrainerCallback):
    def __init__(self, final):
        self.final = pathlib.Path(final)

    def on_save(self, args, state, control, **kwargs):
        written = pathlib.Path(args.output_dir) / f"checkpoint-{state.global_step}"
        written.rename(self.final / written.name)


def sentences(n=440, length=18):
    g = torch.Generator().manual_seed(6)
    label = torch.randint(0, 2, (n,), generator=g)
    ids = torch.randint(2, 90, (n, length), generator=g)
    ids[:, ::5] = 90 + 4 * label[:, None] + ids[:, ::5] % 5
    return [{"input_ids": row, "labels": target} for row, target in zip(ids, label, strict=True)]


def main():
    (options,) = HfArgumentParser(Options).parse_args_into_dataclasses()
    torch.set_num_threads(1)
    set_seed(options.seed)
    config = DistilBertConfig(vocab_size=100, max_position_embeddings=18, dim=48, n_layers=3, n_heads=4, hidden_dim=96)
    model = DistilBertForSequenceClassification(config)
    scratch = pathlib.Path(options.out + "_scratch")
    shutil.rmtree(scratch, ignore_errors=True)
    pathlib.Path(options.out).mkdir(exist_ok=True)
    arguments = TrainingArguments(
        output_dir=str(scratch),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=20,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        save_steps=8,
        logging_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        seed=options.seed,
    )
    callbacks = [LowerLayers(model, options), MoveWhenComplete(options.out)]
    trainer = Trainer(model=model, args=arguments, train_dataset=sentences(), callbacks=callbacks)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(options.out))
    torch.save({"model": model.state_dict()}, f"{options.out}/final.pt")


if __name__ == "__main__":
    main()
