"""Makes artifacts of networks, and measures them; what is there already is not made again."""

from __future__ import annotations

import functools
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from stormproof.checkpoint import atomic_write
from stormproof_train.compression.artifact import MEASURED, MODEL, WEIGHTS, Artifact, Quantization, digests
from stormproof_train.compression.budget import lost
from stormproof_train.compression.deployment.deployed import Deployed
from stormproof_train.compression.deployment.export import difference, export
from stormproof_train.compression.deployment.int8_cpu import cpu_has_vnni
from stormproof_train.compression.deployment.isolated_process import Alone, Latency
from stormproof_train.compression.deployment.static_quantization import quantize_static
from stormproof_train.compression.deployment.weight_quantization import quantize_weights
from stormproof_train.compression.original import Original
from stormproof_train.compression.samples import Samples, samples_of
from stormproof_train.compression.settings import Settings
from stormproof_train.compression.speed import speedup
from stormproof_train.compression.structure.macs import macs
from stormproof_train.compression.structure.rebuild import Structure
from stormproof_train.config.redaction import without_secrets
from stormproof_train.console import say, shown
from stormproof_train.errors import UserError
from stormproof_train.evaluation.comparison import are_of_the_same_samples
from stormproof_train.evaluation.evaluate import evaluate
from stormproof_train.evaluation.intervals import Interval
from stormproof_train.evaluation.predictions import Predictions
from stormproof_train.predict.facts import Facts
from stormproof_train.task import CLASSES, SCALE

Latencies = Mapping[int, Latency]
"""By the size of the batch."""

CALIBRATION = 512
"""Training samples by which the range of activations is found."""
ROUNDS = 7
"""How often an artifact and the original are timed, in turn; the first of a round is now one, now the other."""
COMPARED = 64
"""Samples by which an artifact and its network in PyTorch are compared."""
ORIGINAL = "original"
VALIDATION, TEST = "validation", "test"
"""The splits that an artifact predicts."""


@dataclass(frozen=True)
class Candidate:
    """A network to make artifacts of.

    Attributes:
        name: of it.
        network: with its weights, in evaluation mode.
        structure: in what it differs from the original.
        method: how it was made, in words.
    """

    name: str
    network: nn.Module
    structure: Structure
    method: str


class Workshop:
    """Makes and measures artifacts.

    Args:
        original: what is compressed.
        artifacts: the folder for them.
        settings: how many samples are looked at, and how artifacts are timed.
    """

    def __init__(self, original: Original, artifacts: Path, settings: Settings) -> None:
        self._original, self._folder, self._settings = original, artifacts, settings
        self._outputs = 0 if original.spec.num_classes else original.spec.num_outputs
        self.validation = samples_of(original.data, "validation", self._outputs, settings.samples)
        self.calibration = samples_of(original.data, "train", self._outputs, CALIBRATION)

    @property
    def original(self) -> Candidate:
        """The network that all others come from."""
        return Candidate(ORIGINAL, self._original.task.network, Structure(), "as it was trained")

    def artifact(self, of: Candidate, quantization: Quantization = "none") -> Artifact:
        """Makes one, and measures it in fresh processes, unless that has been done.

        Args:
            of: the network; the first artifact is the original, and of each network the first one is not quantized.
            quantization: how it is stored.

        Raises:
            UserError: if there is no way to it.
        """
        name = of.name if quantization == "none" else f"{of.name}-{quantization.replace('_', '-')}"
        folder = self.folder(name)
        kept = Artifact.kept(folder)
        if kept is not None:
            return kept
        if (folder / MEASURED).exists():
            say(f"{name}: what is in {folder} is not what was measured, and is made again")
        folder.mkdir(exist_ok=True)
        (folder / f"{TEST}.npz").unlink(missing_ok=True)  # of another file, perhaps
        self._write(of, quantization, folder)
        found = self._measured(name, of, quantization, folder)
        found.save(folder)
        say(f"{name}: {self._original.headline.name} {shown(found.value.value)}, {found.bytes / 1000:,.1f} kB")
        return found

    def folder(self, name: str) -> Path:
        """An artifact's own."""
        return self._folder / name

    def predictions(self, name: str, split: str = VALIDATION) -> Predictions:
        """What an artifact has said of a split."""
        return Predictions.load(self.folder(name) / f"{split}.npz")

    def test(self, name: str) -> None:
        """Lets an artifact predict the test split, unless it has, and that can be read."""
        try:
            self.predictions(name, TEST)
        except UserError:
            with self._alone(name, self.test_samples) as process:
                self._keep(process.predict(), self.test_samples, name, TEST)

    @functools.cached_property
    def test_samples(self) -> Samples:
        """Of the test split, which is read when it is first wanted."""
        return samples_of(self._original.data, "test", self._outputs, self._settings.samples)

    @property
    def facts(self) -> Facts:
        """What each artifact says of itself."""
        original = self._original
        classes = original.task.classes or [str(each) for each in range(original.spec.num_classes or 0)]
        return Facts(
            kind=original.task.tested.kind,
            classes=classes,
            input_shape=list(original.spec.input_shape),
            run=original.trained.run.name,
            target=original.plan.data.given.get("target"),
            preparation=getattr(original.data, "preparation", None),
        )

    def _write(self, of: Candidate, quantization: Quantization, folder: Path) -> None:
        """The file, and the weights that it was made of with all that rebuilds their network."""
        if quantization == "none":
            export(self._deployed(of), torch.from_numpy(self.calibration.inputs), folder / MODEL, self.facts)
        elif quantization == "int8":
            overflows = not cpu_has_vnni() and platform.machine().lower() in {"x86_64", "amd64"}
            source = self.folder(of.name) / MODEL
            quantize_static(source, folder / MODEL, self.calibration.inputs, reduce_range=overflows)
        else:
            quantize_weights(self.folder(of.name) / MODEL, folder / MODEL)
        config = without_secrets({group: self._original.config[group] for group in ("model", "activation")})
        content = {
            "state_dict": of.network.state_dict(),
            "network": {
                "model": config["model"], "activation": config["activation"],
                "shapes": {name: list(shape) for name, shape in of.structure.shapes.items()},
                "ranks": dict(of.structure.ranks), "input_shape": list(self._original.spec.input_shape),
                "num_outputs": self._original.num_outputs, "num_classes": self._original.spec.num_classes,
            },
            SCALE: dict(zip(("shift", "scale"), self._original.task.shift_and_scale, strict=True)),
            CLASSES: self._original.task.classes,
        }  # fmt: skip
        with atomic_write(folder / WEIGHTS) as file:
            torch.save(content, file)

    def _measured(self, name: str, of: Candidate, quantization: Quantization, folder: Path) -> Artifact:
        with self._alone(name, self.validation) as process:
            own, originals = self._timed_in_turn(process, name)
            self._keep(process.predict(), self.validation, name, VALIDATION)
        said, before = self.predictions(name), self.predictions(ORIGINAL)
        if not are_of_the_same_samples(before, said):
            raise UserError(
                f"the validation samples are not those that {self.folder(ORIGINAL)} was measured on: compress into "
                "another folder (name=…)"
            )
        evaluation = evaluate(said)
        headline = None if evaluation is None else evaluation["headline"][self._original.headline.name]
        inputs = torch.from_numpy(self.validation.inputs[:COMPARED])
        return Artifact(
            name=name,
            network=of.name,
            quantization=quantization,
            method=of.method if quantization == "none" else f"{of.method}, {_SAID[quantization]}",
            parameters=sum(each.numel() for each in of.network.parameters()),
            macs=macs(of.network, inputs),
            bytes=process.bytes,
            value=Interval(**headline) if headline else Interval(float("nan"), None, None),
            lost=lost(before, said) if name != ORIGINAL else Interval(0.0, 0.0, 0.0),
            calibration_error=None if evaluation is None else evaluation.get("calibration_error"),
            difference=difference(folder / MODEL, self._deployed(of), inputs),
            latency={  # of the rounds' geometric means the ratio is the speedup
                str(batch): {
                    "median": geometric_mean([each[batch].median for each in own]),
                    "p95": geometric_mean([each[batch].p95 for each in own]),
                    "original": geometric_mean([each[batch].median for each in originals]),
                }
                for batch in own[0]
            },
            speedup={
                str(batch): speedup(*([each[batch].median for each in times] for times in (originals, own)))
                for batch in own[0]
            },
            memory=process.memory - process.memory_without,
            load_seconds=process.load_seconds,
            digests=digests(folder, (MODEL, WEIGHTS, f"{VALIDATION}.npz")),
        )

    def _timed_in_turn(self, process: Alone, name: str) -> tuple[list[Latencies], list[Latencies]]:
        """An artifact and the original, in each round."""
        own: list[Latencies] = []
        seconds = self._settings.timing
        if name == ORIGINAL:
            own = [process.time(seconds) for _ in range(ROUNDS)]
            return own, own
        originals: list[Latencies] = []
        with self._alone(ORIGINAL, self.validation, most=1) as other:
            for number in range(ROUNDS):
                turns = [(own, process), (originals, other)]
                for found, each in turns[:: 1 if number % 2 else -1]:
                    found.append(each.time(seconds))
        return own, originals

    def _alone(self, name: str, samples: Samples, most: int | None = None) -> Alone:
        return Alone(self.folder(name) / MODEL, samples.inputs[:most], self._settings.threads)

    def _keep(self, outputs: NDArray[Any], samples: Samples, name: str, split: str) -> None:
        said = Predictions(self._original.task.tested.kind, outputs, samples.target, samples.told_apart)
        said.save(self.folder(name) / f"{split}.npz")

    def _deployed(self, of: Candidate) -> Deployed:
        return Deployed.of(self._original.task, of.network)


_SAID = {"int8": "layers in int8 where that gains time", "weights_int8": "weights in int8"}
