"""The settings of a compression, and their defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from stormproof_train.compression.budget import read_amount
from stormproof_train.compression.schedule import MAX_RATIO
from stormproof_train.compression.structure.cuts import BLOCK

CostName = Literal["latency", "size", "macs"]
"""What is to be small: seconds of one sample, bytes on disk, multiply-accumulates of one sample."""
Method = Literal["prune", "factor", "distill", "int8", "weights_int8"]
TargetName = Literal["speedup", "size", "macs"]


BLOCK_KEY = "pruned in blocks of (minimize)"


class Settings:
    """What a compression is to come to, and how.

    Args:
        run: the folder of a run, or one of its checkpoints.
        budget: what may be lost on validation, the worse end of its 95% interval: ``1pp`` (percentage points of
            accuracy), ``2%`` (of the original's value), or a number in the unit of the headline metric.
        target: instead of a budget, or with one: ``speedup``, ``size`` or ``macs``, how many times faster, smaller on
            disk, or fewer the best artifact is to be; nothing smaller is tried then.
        minimize: by what the best artifact is chosen. Where it is latency, that is the one that lost least of those
            that none is surely faster than, and pruned layers are left with whole blocks of 16 channels: 10 take as
            long.
        methods: of ``prune``, ``factor`` (low-rank dense layers), ``distill`` (the original teaches), ``int8`` (static)
            and ``weights_int8``; None: all that can do something for this network.
        training: the length of a fine-tuning, in lengths of the run, above 0.
        threads: of the artifacts' processes, when they are timed, at least 1.
        timing: seconds that an artifact is timed for, with each size of batch, seven times over.
        samples: of validation, and of the test split, are looked at, at most.
        test: whether the test split is read in the end; None: as the run itself did.
        name: of the folder; None: the run's.
        folder: of all compressions.

    Raises:
        ValueError: if one is out of its range, or neither a budget nor a target is given.
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
        read_amount(budget)  # what it allows, the original's value decides later
        if budget is None and not self.target:
            raise ValueError("say what may be lost (budget=1pp, 2% or a number), or what is wanted (target.speedup=2)")
        if self.methods is not None and not {"prune", "factor", "int8", "weights_int8"} & set(self.methods):
            raise ValueError(f"methods={methods}: nothing gets smaller by them; there is {', '.join(get_args(Method))}")
        if not training > 0:
            raise ValueError(f"training={training} should be above 0, in lengths of the run")
        if timing < 0:
            raise ValueError(f"timing={timing} should be at least 0 seconds")
        for key, value in (("threads", threads), ("samples", samples)):
            if value < 1:
                raise ValueError(f"{key}={value} should be a whole number from 1")
        for key, factor in self.target.items():
            if not 1 < factor <= MAX_RATIO:
                raise ValueError(
                    f"target.{key}={factor} should be above 1, and at most {MAX_RATIO:g}: further nothing is tried"
                )

    def allows(self, method: Method) -> bool:
        """Whether a method may be used."""
        return self.methods is None or method in self.methods

    @property
    def block(self) -> int:
        """Channels that are computed at once, of which a layer is left with whole blocks where time counts."""
        return BLOCK if self.minimize == "latency" else 1

    def result_settings(self) -> dict[str, object]:
        """What makes other artifacts of the same names; how many there are, and which is the best, does not.

        What has no part in any artifact is None.
        """
        is_trained = self.allows("prune") or self.allows("factor")
        return {
            "distill": self.allows("distill") if is_trained else None,
            "training": self.training if is_trained else None,
            BLOCK_KEY: self.block if self.allows("prune") else None,
            "threads": self.threads, "timing": self.timing, "samples": self.samples,
        }  # fmt: skip
