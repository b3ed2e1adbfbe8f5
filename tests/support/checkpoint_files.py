"""Folders of small, real checkpoints."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch

from stormproof.checkpoint import Checkpoint, CommitInfo, Store
from stormproof.checkpoint.manifest import LogPrefix, encode_manifest


def make_state(step: int) -> dict[str, Any]:
    """Returns a checkpoint as Lightning saves it, of 40 weights that depend on the step."""
    weight = torch.arange(40, dtype=torch.float32) + step
    return {"state_dict": {"weight": weight}, "global_step": step, "epoch": step // 100}


def state_writer(step: int) -> Callable[[BinaryIO], object]:
    return lambda file: torch.save(make_state(step), file)


def commit_checkpoint(
    store: Store, step: int, *, attempt: int = 1, fence: Callable[[], object] | None = None, **fields: Any
) -> Checkpoint:
    info = CommitInfo(step=step, **{"epoch": step // 100, "world_size": 1, **fields})
    return store.commit(state_writer(step), info, attempt=attempt, fence=fence)


def make_store(folder: Path, steps: Sequence[int] = (10, 20, 30)) -> Store:
    """Creates a folder with one attempt and a checkpoint at each of ``steps``."""
    store = Store(folder)
    store.begin_attempt(store.resolve())
    for step in steps:
        commit_checkpoint(store, step)
    return store


def make_checkpoint(folder: Path, sequence: int, step: int = 10, **fields: Any) -> Checkpoint:
    """Returns a checkpoint as its manifest describes it, without a file."""
    defaults = {
        "epoch": 0, "world_size": 1, "attempt": 1, "digest": "sha256:" + "0" * 64, "bytes": 1, "score": None,
        "identity": None, "run": None, "versions": {}, "finite": True, "healthy": None, "adopted": False, "time": 0.0,
    }  # fmt: skip
    path = folder / f"{sequence:06d}-step-{step}.ckpt"
    return Checkpoint(path=path, sequence=sequence, step=step, **{**defaults, **fields})


def forge_manifest(checkpoint: Checkpoint, **fields: Any) -> bytes:
    """Returns a forged manifest: changed content with a valid hash."""
    manifest = json.loads(encode_manifest(checkpoint, LogPrefix.from_content(b"")))
    del manifest["manifest_sha256"]
    manifest |= {**fields, "manifest_sha256": "0" * 64}
    encoded = json.dumps(manifest, indent=1).encode() + b"\n"
    return encoded.replace(b'"manifest_sha256": "' + b"0" * 64, b'"manifest_sha256": "' + _sha256(encoded))


def _sha256(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def flip_bit(path: Path, offset: int | None = None) -> None:
    """Flips a bit of a file, by default in its middle byte."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if offset is None else offset] ^= 1
    path.write_bytes(content)


def file_names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
