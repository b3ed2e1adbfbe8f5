"""The configurations that the case compares."""

from __future__ import annotations

from dataclasses import dataclass

BASELINE = "baseline"
SPLITS = ("train", "validation", "test")

CNN = {
    "mnist1d": ["model=cnn", "model.widths=[9,18,36]"],
    "fashion_mnist": ["model=cnn", "model.widths=[8,32,72]"],
}
AUGMENTATION = {"mnist1d": "signal", "fashion_mnist": "crop_flip"}


@dataclass(frozen=True)
class Row:
    """A configuration of the ladder.

    Attributes:
        name: Name of the change.
        overrides: The change as overrides.
        is_sum: Whether it combines several changes, based on its own experiment.
    """

    name: str
    overrides: tuple[str, ...]
    is_sum: bool = False


def ladder(data: str) -> list[Row]:
    """Returns the baseline, one change at a time, then the combinations."""
    baseline, best = f"experiment=case/{data}", f"experiment=case/{data}_best"
    augmentation = AUGMENTATION[data]
    narrow = {"mnist1d": "[16,16]", "fashion_mnist": "[32,16,8]"}[data]
    return [
        Row(BASELINE, (baseline,)),
        Row("cosine schedule", (baseline, "scheduler=cosine")),
        Row("weight decay 1", (baseline, "optimizer.weight_decay=1.0")),
        Row("dropout 0.3", (baseline, "model.dropout=0.3")),
        Row("batch norm", (baseline, "model.norm=batch")),
        Row("augmentation", (baseline, f"augmentation={augmentation}")),
        Row("label smoothing 0.1", (baseline, "loss=label_smoothing")),
        Row("mixup 0.2", (baseline, "augmentation=mixup")),
        Row("averaged weights", (baseline, "callbacks=ema")),
        Row("early stopping", (baseline, "callbacks=early_stopping")),
        Row("an eighth of the width", (baseline, f"model.widths={narrow}")),
        Row("convolutions", (baseline, *CNN[data])),
        Row("sum: convolutions, batch norm, one cycle", (best, "augmentation=none"), is_sum=True),
        Row("sum + augmentation", (best,), is_sum=True),
        Row("sum + augmentation + label smoothing", (best, "loss=label_smoothing"), is_sum=True),
        Row("sum + augmentation + mixup", (best, f"augmentation=[{augmentation},mixup]"), is_sum=True),
        Row("sum + augmentation + averaged weights", (best, "callbacks=ema"), is_sum=True),
    ]
