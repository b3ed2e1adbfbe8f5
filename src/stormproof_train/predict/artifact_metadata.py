"""What an artifact says of itself, so that it can be used without the run that it comes from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

OutputKind = Literal["probabilities", "scores", "values"]

METADATA_KEY = "stormproof"
"""Of an ONNX file's metadata, where the facts are, as JSON."""


@dataclass(frozen=True)
class ArtifactMetadata:
    r"""Plain values about an artifact.

    Attributes:
        kind: of its predictions, which is also the name of its output.
        classes: the names of the classes, in the order of the outputs; none for values.
        input_shape: of one sample.
        run: the name of the run that it comes from.
        target: the name of what it predicts; None where it has none.
        preparation: how a file becomes the network's input, as the data module says it; None where it says nothing.

    Example:
        >>> metadata = ArtifactMetadata("values", [], [10], "small_mouse", "price")
        >>> ArtifactMetadata.from_json(metadata.to_json()) == metadata
        True
    """

    kind: OutputKind
    classes: list[str]
    input_shape: list[int]
    run: str
    target: str | None = None
    preparation: Mapping[str, Any] | None = None

    def to_json(self) -> str:
        """All of it as JSON."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> ArtifactMetadata:
        """What :meth:`to_json` gave.

        Raises:
            ValueError: if it is none of it.
        """
        try:
            metadata = cls(**json.loads(text))
        except TypeError as error:
            raise ValueError("what it says of itself is not what this application writes") from error
        if metadata.kind not in get_args(OutputKind):
            raise ValueError(f"there are no predictions of kind {metadata.kind}")
        return cast("ArtifactMetadata", metadata)
