"""How an artifact is used: what it takes and gives, and code that runs it."""

from __future__ import annotations

from stormproof_train.compression.artifact import MODEL_FILE, WEIGHTS_FILE
from stormproof_train.compression.deployment.export import INPUT_NAME
from stormproof_train.compression.report.compression_info import ArtifactInfo
from stormproof_train.compression.report.markdown import inline_code, table
from stormproof_train.predict.artifact_metadata import ArtifactMetadata

MAX_CLASSES = 50
"""Of more only the first are named: the file has all."""

_OUTPUT_DESCRIPTIONS = {
    "probabilities": "the probability of each class; those of a sample sum to 1",
    "scores": "a score for each class, the highest of the predicted one; they are no probabilities",
    "values": "the predicted values, in the unit of the target",
}


def describe_interface(metadata: ArtifactMetadata) -> list[str]:
    """The lines that say what the file takes, and what it gives."""
    shape = ", ".join(["N", *map(str, metadata.input_shape)])
    output_shape = f"N, {len(metadata.classes)}" if metadata.classes else "N, values"
    rows = [
        (
            inline_code(INPUT_NAME),
            f"({shape})",
            "float32",
            "N samples, any number of them, prepared as the training data were",
        ),
        (inline_code(metadata.kind), f"({output_shape})", "float32", _OUTPUT_DESCRIPTIONS[metadata.kind]),
    ]
    lines = table(("name", "shape", "dtype", "meaning"), rows)
    if metadata.classes:
        class_list = ", ".join(inline_code(name) for name in metadata.classes[:MAX_CLASSES])
        num_remaining = len(metadata.classes) - MAX_CLASSES
        remainder = f" and {num_remaining:,} more" if num_remaining > 0 else ""
        lines += [
            "",
            f"Classes, in the order of the output: {class_list}{remainder}.",
        ]
    return lines


def describe_usage(artifact: ArtifactInfo, metadata: ArtifactMetadata) -> list[str]:
    """The lines that say how to run it, by itself and on files, and how to have it in PyTorch."""
    quantization_note = " before it was quantized" if artifact.quantization != "none" else ""
    shape = ", ".join(["1", *map(str, metadata.input_shape)])
    return [
        "```python",
        "import numpy as np",
        "import onnxruntime",
        f'session = onnxruntime.InferenceSession("{MODEL_FILE}", providers=["CPUExecutionProvider"])',
        f"inputs = np.zeros(({shape}), dtype=np.float32)  # yours",
        f'({metadata.kind},) = session.run(None, {{"{INPUT_NAME}": inputs}})',
        "```",
        "",
        "On files, prepared as the training data were:",
        "",
        "```sh",
        "stormproof-train predict model=FOLDER input=FILE",
        "```",
        "",
        f"FOLDER is that of this card ({inline_code(artifact.folder)} of the compression).",
        "",
        f"Its network in PyTorch{quantization_note}, in evaluation mode, out of {inline_code(WEIGHTS_FILE)}:",
        "",
        "```python",
        "from stormproof_train.compression.rebuilding import load_network",
        f'network = load_network("{WEIGHTS_FILE}")',
        "```",
    ]
