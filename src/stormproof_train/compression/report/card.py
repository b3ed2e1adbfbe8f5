"""The model card of an artifact: all that somebody has to know who uses it without the run that it comes from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from stormproof_train.compression.artifact import MODEL
from stormproof_train.compression.report.artifacts import (
    ORIGINAL,
    Artifact,
    Compression,
    read_artifact,
    read_compression,
)
from stormproof_train.compression.report.markdown import code, table, text
from stormproof_train.compression.report.metric import Metric
from stormproof_train.compression.report.quantities import milliseconds, prefixed, ratio
from stormproof_train.compression.report.usage import inputs_and_outputs, running
from stormproof_train.console import shown
from stormproof_train.predict.facts import Facts
from stormproof_train.report.kit.json_numbers import finite

WORST_CLASSES = 5


def card(numbers: Mapping[str, Any], artifact: Mapping[str, Any], facts: Facts) -> str:
    """The model card of an artifact, in Markdown.

    Args:
        numbers: of its compression, as
            :func:`stormproof_train.compression.report.compression_page.compression_page` takes them.
        artifact: one of their ``artifacts``, with ``lost_by_class``, of each class ``name`` and ``lost``, by how much
            its recall on validation is worse than with the original.
        facts: what the artifact says of itself.
    """
    compression, own = read_compression(numbers), read_artifact(artifact)
    lines = [
        f"# {text(facts.run)}: {text(own.name)}", "", *_what_it_is(numbers, own, facts),
        "", "## Results", "", *_results(compression, own), "", *_beside(numbers, compression, own),
        "", "## Inputs and outputs", "", *inputs_and_outputs(facts),
        "", "## How to run it", "", *running(own, facts),
        "", "## Data", "", *_data(numbers, facts),
        "", "## Limits", "", *_limits(numbers, own, artifact["lost_by_class"]),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _what_it_is(numbers: Mapping[str, Any], own: Artifact, facts: Facts) -> list[str]:
    what = f"tells {len(facts.classes):,} classes apart" if facts.classes else "predicts numbers"
    sizes = (
        prefixed(own.bytes, "B"),
        f"{prefixed(own.parameters)} parameters" * (own.parameters is not None),
        f"{prefixed(own.macs)} multiply-accumulates a sample" * (own.macs is not None),
    )
    made = numbers["made_with"]
    target = f" ({text(facts.target)})" if facts.target is not None else ""
    return [
        f"A network for {text(numbers['task'])}, as an ONNX file ({code(MODEL)}): it {what}{target}.",
        "",
        f"- From the run {code(numbers['run'])}, checkpoint {code(numbers['checkpoint'])}",
        f"- How it was made: {text(own.method)}",
        f"- The network: {', '.join(f'{group} {code(path)}' for group, path in made['network'].items())}",
        f"- Made with {', '.join(f'{name} {each}' for name, each in made['versions'].items())}",
        f"- Size: {', '.join(filter(None, sizes)) or 'unknown'}",
    ]


def _results(compression: Compression, own: Artifact) -> list[str]:
    metric, calibrated = compression.metric, "validation" if own.test is None else "the test split"
    measures: list[tuple[str, Callable[[Artifact], str]]] = [
        (f"{metric.name} on the test split (95% interval)", lambda each: metric.cell(each.test)),
        (f"{metric.name} on validation (95% interval)", lambda each: metric.cell(each.validation)),
        (f"expected calibration error on {calibrated}", lambda each: _known(each.calibration_error)),
        ("size of the file", lambda each: prefixed(each.bytes, "B")),
        *((f"ms, batch of {batch} (median; 95% are below)", _latency_of(batch)) for batch in compression.batches),
        ("memory", lambda each: prefixed(each.memory, "B")),
        ("ms to load", lambda each: milliseconds(each.load_seconds)),
    ]
    sides = [own]
    if own.name != ORIGINAL and compression.original is not None:
        sides.append(compression.original)
    rows = [(name, *(measure(each) for each in sides)) for name, measure in measures]
    head = ("", "this artifact", "the original")[: 1 + len(sides)]
    return table([text(cell) for cell in head], [[text(cell) for cell in row] for row in rows if any(row[1:])])


def _beside(numbers: Mapping[str, Any], compression: Compression, own: Artifact) -> list[str]:
    """What was lost and gained, and where that was measured."""
    machine = numbers["machine"]
    threads = machine["threads"]
    where = f"{text(machine['processor'])} with {threads} thread{'s' * (threads != 1)}"
    told = [f"Latencies were measured on {where}; {text(machine['int8'].rstrip('.'))}."]
    if own.difference is not None:
        told.append(
            f"On real inputs its outputs differ by {own.difference:.2g} at most from those of its network in PyTorch."
        )
    return [*([] if own.name == ORIGINAL else _lost(compression.metric, own)), *told]


def _lost(metric: Metric, own: Artifact) -> list[str]:
    unit = "percentage points" if metric.is_share else "in its own unit"
    lost = [
        (metric.lost_cell(each), split)
        for each, split in ((own.test_lost, "the test split"), (own.lost, "validation"))
        if each
    ]
    told = [f"Lost of {text(metric.name)} against the original, with 95% intervals, {unit}:"] if lost else []
    told += ["", *(f"- {cell} on {split}" for cell, split in lost), ""] if lost else []
    if own.mcnemar is not None:
        first, second, p_value = own.mcnemar
        p_told = "" if p_value is None else f" (McNemar's test: p = {p_value:.2g})"
        told.append(
            f"Of the test samples the original alone is right on {first:,}, this artifact alone on {second:,}{p_told}."
        )
    faster = "; ".join(f"{ratio(each.value)} in batches of {batch}" for batch, each in own.speedup.items())
    return [*told, *([f"Times faster than the original: {faster}."] if faster else [])]


def _data(numbers: Mapping[str, Any], facts: Facts) -> list[str]:
    samples = numbers["samples"]
    test = f", {samples['test']:,} test samples" if samples["test"] else "; the test split was not read"
    told = [f"Measured on {samples['validation']:,} validation samples{test}; the training is described in the run."]
    if facts.preparation is None:
        return [*told, "How a file becomes an input is not known: give arrays as the training data gave them."]
    described = json.dumps(facts.preparation, indent=1, ensure_ascii=False, default=str).replace("```", "'''")
    return [*told, "", "How a file becomes an input:", "", "```json", described, "```"]


def _limits(numbers: Mapping[str, Any], own: Artifact, by_class: Any) -> list[str]:
    samples = numbers["samples"]
    told = [
        "- It was measured on this data only; of samples from elsewhere nothing is known.",
        f"- It was chosen by validation, where it so may look a little better than it is{_within(numbers)}."
        if own.name == numbers["best"]
        else "- It is not the artifact that was recommended."
        if own.name != ORIGINAL
        else "- It is the original, in another format.",
        "- On another processor, or with another number of threads, latencies are others.",
    ]
    if own.quantization == "int8":
        told.append(
            "- It was quantized for the processor it was measured on; one without instructions for int8 is slower, and "
            "an x86 without VNNI may round off sums that overflow."
        )
        told.append(
            f"- The ranges of its int8 numbers were found on {samples['calibration']:,} training samples; inputs far "
            "from these are cut off at the ends."
        )
    told += [f"- To be said against it: {text(each)}." for each in own.remarks]
    known = [(str(each["name"]), lost) for each in by_class if (lost := finite(each["lost"])) is not None and lost > 0]
    worst = sorted(known, key=lambda pair: -pair[1])[:WORST_CLASSES]
    if worst:
        named = ", ".join(f"{text(name)} ({lost * 100:.2f})" for name, lost in worst)
        told.append(f"- The classes that lost the most of their recall on validation, in percentage points: {named}.")
    return told


def _within(numbers: Mapping[str, Any]) -> str:
    budget = numbers["budget"]
    return f": the worse end of the interval of what it lost is within {text(budget['told'])}" if budget else ""


def _latency_of(batch: str) -> Callable[[Artifact], str]:
    def told(artifact: Artifact) -> str:
        return "; ".join(filter(None, map(milliseconds, artifact.latency.get(batch, ()))))

    return told


def _known(value: float | None) -> str:
    return "" if value is None else shown(value)
