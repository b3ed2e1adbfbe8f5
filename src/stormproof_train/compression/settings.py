"""Defines the settings of a compression and their defaults."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

from stormproof_train.compression.budget import read_amount
from stormproof_train.compression.structure.cuts import BLOCK

CostName = Literal["latency", "size", "macs"]
"""Costs to minimize: seconds per sample, bytes on disk, multiply-accumulates per sample."""
Method = Literal["prune", "factor", "distill", "int8", "weights_int8"]
TargetName = Literal["speedup", "size", "macs"]


BLOCK_KEY = "pruned in blocks of (minimize)"


class Settings:
    """Settings of a compression.

    Args:
        run: Folder of a run, or one of its checkpoints.
        budget: Limit for the upper end of the 95% interval of the degradation on validation. Either ``1pp`` (percentage
            points of accuracy), ``2%`` (of the original's value), or a number in the unit of the headline metric.
        target: Minimum gain by ``speedup``, ``size`` (on disk) or ``macs``, instead of a budget or in addition. Larger
            compression ratios are not tried.
        minimize: Cost by which the best artifact is selected. For latency, it is the artifact with the smallest
            degradation among artifacts that no other one significantly exceeds in speed. Pruned layers then keep
            multiples of 16 channels, because 10 channels take as long as 16.
        methods: Methods among ``prune``, ``factor`` (low-rank dense layers), ``distill`` (the original is the teacher),
            ``int8`` (static) and ``weights_int8``. None uses all that suit this network.
        training: Length of fine-tuning relative to the run. Must be positive.
        threads: Threads of the artifacts' processes during timing. Must be at least 1.
        timing: Seconds of each of seven timing rounds, per batch size. Must not be negative.
        samples: Maximum number of samples of validation and test split. Must be at least 1.
        test: Whether to use the test split at the end. None does what the run did.
        name: Name of the folder. None uses the name of the run.
        folder: Folder of all compressions.

    Raises:
        ValueError: If a setting is out of its range, or neither a budget nor a target is given.
    """

    def __init__(
        self,
        run: str,
        budget: str | float | None = None,
        target: Mapping[TargetName, float] | None = None,
        minimize: CostName = "latency",
        methods: Sequence[Method] | None = None,
        training: float = 0.5,
        threads: int = 1,
        timing: float = 0.4,
        samples: int = 10_000,
        test: bool | None = None,
        name: str | None = None,
        folder: str = "compressed",
    ) -> None:
        self.run, self.budget, self.target = run, budget, dict(target or {})
        self.minimize: CostName = minimize
        self.methods = methods
        self.training, self.threads, self.timing, self.samples = training, threads, timing, samples
        self.test, self.name, self.folder = test, name, folder
        read_amount(budget)  # checks the format, the limit itself depends on the original's value
        if budget is None and not self.target:
            raise ValueError("set a budget (budget=1pp, 2% or a number) or a target (target.speedup=2)")
        if self.methods is not None and not {"prune", "factor", "int8", "weights_int8"} & set(self.methods):
            raise ValueError(
                f"methods={methods} must include prune, factor, int8 or weights_int8 to reduce a cost; available are "
                f"{', '.join(get_args(Method))}"
            )
        if not training > 0:
            raise ValueError(f"training={training} must be positive, relative to the length of the run")
        if timing < 0:
            raise ValueError(f"timing={timing} must not be negative")
        for key, value in (("threads", threads), ("samples", samples)):
            if value < 1:
                raise ValueError(f"{key}={value} must be an integer of at least 1")
        for key, factor in self.target.items():
            if not 1 < factor <= MAX_RATIO:
                raise ValueError(
                    f"target.{key}={factor} must be above 1 and at most {MAX_RATIO:g}, the largest ratio that is tried"
                )

    def allows(self, method: Method) -> bool:
        """Returns True if a method may be used."""
        return self.methods is None or method in self.methods

    @property
    def block(self) -> int:
        """Number of channels that are computed together. Layers keep multiples of it if latency is minimized."""
        return BLOCK if self.minimize == "latency" else 1

    def result_settings(self) -> dict[str, object]:
        """Returns the settings that affect the content of artifacts, with None for settings that no method uses."""
        is_trained = self.allows("prune") or self.allows("factor")
        return {
            "distill": self.allows("distill") if is_trained else None,
            "training": self.training if is_trained else None,
            BLOCK_KEY: self.block if self.allows("prune") else None,
            "threads": self.threads, "timing": self.timing, "samples": self.samples,
        }  # fmt: skip


MAX_RATIO = 64.0
"""Maximum ratio. Networks that are compressed further are not known to remain useful."""


def search_compression_ratio(try_ratio: Callable[[float], bool]) -> None:
    """Tries ratios 2, 4, 8, … until one fails, then the geometric mean of it and the last success.

    Args:
        try_ratio: Compresses the original by the ratio, and returns True if a larger ratio should be tried.

    Example:
        >>> search_compression_ratio(lambda times: print(times) or times < 7)
        2.0
        4.0
        8.0
        5.7
    """
    ratio = 2.0
    while try_ratio(ratio):
        if ratio >= MAX_RATIO:
            return
        ratio *= 2
    try_ratio(round(ratio / math.sqrt(2), 1))
