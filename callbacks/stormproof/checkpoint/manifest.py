"""Description of a checkpoint, with software versions, and the manifest file that stores it with a checksum."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from stormproof.checkpoint.file_names import format_stem, is_shard_file
from stormproof.checkpoint.hashing import ALGORITHMS, StoredFile
from stormproof.errors import NotResumableError

FILE_FORMAT = 2
"""Format of new manifests of checkpoints in one file. Format 1 has the field ``sha256`` instead of ``digest``."""
FOLDER_FORMAT = 3
"""Format of new manifests of sharded checkpoints, with the field ``files``."""

ABORTED_PREFIX = b'{"aborted": '
"""First bytes of the manifest of an aborted commit."""

_ZERO_DIGEST = "0" * 64
_DIGEST_PREFIX = b'"manifest_sha256": "'
_DIGEST_SUFFIX = b'"\n}\n'
_MAX_BYTES = 10_000_000  # bytes; a manifest has about 1,000, and 100 more for each shard
PACKAGES = ("torch", "pytorch-lightning", "stormproof")


class AbortedCommitError(ValueError):
    """Another attempt aborted this commit."""


@dataclass(frozen=True, kw_only=True)
class CommitInfo:
    """Description of a checkpoint to commit.

    Attributes:
        step: Optimizer steps done (Lightning's ``global_step``). Must be at least 0.
        epoch: Epoch in which it was captured, from 0.
        world_size: Number of ranks. 0 if unknown, as for a checkpoint of another tool.
        score: Value of the monitored metric. None without one.
        identity: Identity of the run, any string.
        run: Name of the run.
        finite: Whether all numbers in it are finite. Otherwise no run resumes from it.
        healthy: Whether the run is healthy. None if unknown.
        adopted: Whether another tool saved it.
    """

    step: int
    epoch: int
    world_size: int
    score: float | None = None
    identity: str | None = None
    run: str | None = None
    finite: bool = True
    healthy: bool | None = None
    adopted: bool = False


@dataclass(frozen=True, kw_only=True)
class Checkpoint(CommitInfo):
    """A committed checkpoint, as its manifest describes it.

    Attributes:
        path: The ``.ckpt`` file or folder, which Lightning reads. Only its name if it is in an object store.
        sequence: Number of the commit in this folder, from 1. The newest checkpoint has the highest number.
        attempt: Attempt that wrote it, from 1. 0 if no attempt wrote it.
        digest: Hash of the file, as ``<algorithm>:<hex digits>``. For a sharded checkpoint, hash of :attr:`files`.
        bytes: Size of all files, in bytes.
        versions: Versions of python, torch, pytorch-lightning and stormproof that wrote it.
        time: Time of the commit, in seconds since the epoch.
        files: Files of a sharded checkpoint, by their name in its folder. None for a checkpoint in one file.
    """

    path: Path
    sequence: int
    attempt: int
    digest: str
    bytes: int
    versions: Mapping[str, str]
    time: float
    files: Mapping[str, StoredFile] | None = None

    @property
    def stored_files(self) -> dict[str, StoredFile]:
        """All files by their name in the storage, such as ``<name>.ckpt/meta.pt``. The manifest is not among them."""
        if self.files is None:
            return {self.path.name: StoredFile(self.bytes, self.digest)}
        return {f"{self.path.name}/{name}": file for name, file in self.files.items()}

    @property
    def commit_info(self) -> CommitInfo:
        """Description to commit a copy."""
        return CommitInfo(**{field.name: getattr(self, field.name) for field in fields(CommitInfo)})

    @property
    def name(self) -> str:
        """Name of the file or folder without ``.ckpt``."""
        return self.path.stem

    @property
    def manifest_path(self) -> Path:
        """Path of the manifest."""
        return self.path.with_suffix(".json")


@dataclass(frozen=True)
class LogPrefix:
    """Length and hash of the commit log directly before a commit, to detect later damage.

    Attributes:
        bytes: Length of the log, in bytes.
        sha256: SHA-256 of the log, as 64 hex digits.
    """

    bytes: int
    sha256: str

    @classmethod
    def from_content(cls, content: bytes) -> LogPrefix:
        """Returns the prefix of a log with this content."""
        return cls(len(content), hashlib.sha256(content).hexdigest())

    def matches(self, content: bytes) -> bool:
        """Returns whether ``content`` begins with this prefix."""
        return len(content) >= self.bytes and hashlib.sha256(content[: self.bytes]).hexdigest() == self.sha256


def encode_manifest(checkpoint: Checkpoint, log_prefix: LogPrefix) -> bytes:
    """Returns a manifest as JSON. Its last field is the SHA-256 of the JSON with zeros for the digits of that field."""
    files = checkpoint.files
    manifest_format = FILE_FORMAT if files is None else FOLDER_FORMAT
    fields: dict[str, Any] = {"format": manifest_format, "file": checkpoint.path.name}
    fields |= {name: getattr(checkpoint, name) for name in _FIELD_TYPES}
    if files is not None:
        fields["files"] = {name: [file.bytes, file.digest] for name, file in files.items()}
    fields |= {"log_bytes": log_prefix.bytes, "log_sha256": log_prefix.sha256, "manifest_sha256": _ZERO_DIGEST}
    zeroed_content = json.dumps(fields, indent=1, allow_nan=False).encode() + b"\n"
    return zeroed_content.replace(
        _ZERO_DIGEST.encode() + _DIGEST_SUFFIX, hashlib.sha256(zeroed_content).hexdigest().encode() + _DIGEST_SUFFIX
    )


def decode_manifest(content: bytes, path: Path) -> tuple[Checkpoint, LogPrefix]:
    """Reads a manifest that :func:`encode_manifest` wrote.

    Args:
        content: Bytes of the manifest.
        path: The ``.ckpt`` file. Its name must equal the one in the manifest, which is not used otherwise.

    Raises:
        AbortedCommitError: If another attempt aborted the commit.
        ValueError: If any byte has changed or the manifest belongs to another file. The message states the reason.
        NotResumableError: If a later version of stormproof wrote the manifest.
    """
    fields = _parse_verified_fields(content)
    manifest_format = fields.get("format")
    if type(manifest_format) is not int or manifest_format < 1:
        raise ValueError(f"its manifest has an invalid format, {manifest_format!r:.60}")
    if manifest_format > FOLDER_FORMAT:
        raise _make_update_error(path, f"format {manifest_format}")
    if manifest_format == 1:
        fields["digest"] = f"sha256:{fields.get('sha256')}"
    if fields.get("file") != path.name:
        raise ValueError(f"its manifest belongs to another file, {fields.get('file')!r:.60}")
    for name, types in {**_FIELD_TYPES, "log_bytes": (int,), "log_sha256": (str,)}.items():
        if not _has_type(fields.get(name), types):
            raise ValueError(f"the field {name} of its manifest has a wrong type")
    files = _parse_files(fields.get("files")) if manifest_format == FOLDER_FORMAT else None
    checkpoint = Checkpoint(path=path, files=files, **{name: fields[name] for name in _FIELD_TYPES})
    if format_stem(checkpoint.sequence, checkpoint.step) != path.stem:
        raise ValueError("its manifest has another sequence or step than its name")
    _check_digests([StoredFile(checkpoint.bytes, checkpoint.digest), *(files or {}).values()], path)
    return checkpoint, LogPrefix(fields["log_bytes"], fields["log_sha256"])


_FIELD_TYPES: Mapping[str, tuple[type | None, ...]] = {
    "sequence": (int,),
    "step": (int,),
    "epoch": (int,),
    "world_size": (int,),
    "attempt": (int,),
    "digest": (str,),
    "bytes": (int,),
    "score": (float, int, None),
    "identity": (str, None),
    "run": (str, None),
    "versions": (dict,),
    "finite": (bool,),
    "healthy": (bool, None),
    "adopted": (bool,),
    "time": (float, int),
}


def _check_digests(files: Iterable[StoredFile], path: Path) -> None:
    for file in files:
        if not re.fullmatch("[a-z0-9_]+:[0-9a-f]+", file.digest):  # also without a sha256 in format 1
            raise ValueError(f"its manifest has an invalid digest, {file.digest!r:.60}")
        if file.algorithm not in ALGORITHMS:
            raise _make_update_error(path, f"the hash algorithm {file.algorithm!r:.60}")


def _parse_files(value: object) -> dict[str, StoredFile]:
    if not isinstance(value, dict) or not value:
        raise ValueError("the field files of its manifest is empty or not an object")
    files = {}
    for name, file in value.items():
        # a name with a slash could lead out of the folder
        if not (isinstance(file, list) and [type(item) for item in file] == [int, str]) or not is_shard_file(name):
            raise ValueError(f"its manifest has an invalid file, {name!r:.60}")
        files[name] = StoredFile(*file)
    return files


def _make_update_error(path: Path, feature: str) -> NotResumableError:
    return NotResumableError(
        f"The manifest of {path} uses {feature}, which this version of stormproof does not support. Update stormproof."
    )


def _parse_verified_fields(content: bytes) -> dict[str, Any]:
    """Returns the fields of a manifest after verifying its hash."""
    if content.startswith(ABORTED_PREFIX):
        raise AbortedCommitError("its commit was aborted by another attempt")
    digest_slice = slice(len(content) - len(_DIGEST_SUFFIX) - 64, len(content) - len(_DIGEST_SUFFIX))
    if len(content) > _MAX_BYTES or not content[: max(digest_slice.start, 0)].endswith(_DIGEST_PREFIX):
        raise ValueError("its manifest is truncated or was not written by stormproof")
    zeroed_content = content[: digest_slice.start] + _ZERO_DIGEST.encode() + content[digest_slice.stop :]
    if hashlib.sha256(zeroed_content).hexdigest().encode() != content[digest_slice]:
        raise ValueError("its manifest was changed after it was written")
    try:
        fields = json.loads(zeroed_content)
    except (ValueError, RecursionError) as error:
        raise ValueError("its manifest is not JSON") from error
    if not isinstance(fields, dict):
        raise ValueError("its manifest is not a JSON object")  # noqa: TRY004 (the type comes from the file)
    return fields


def _has_type(value: object, types: tuple[type | None, ...]) -> bool:
    if value is None:
        return None in types
    if isinstance(value, dict):
        return dict in types and all(isinstance(item, str) for item in value.values())
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return type(value) in types  # not isinstance, for which True is an int


@cache
def collect_versions() -> Mapping[str, str]:
    """Returns the versions of Python and of ``PACKAGES``. A package that is not installed is ``unknown``."""
    return {"python": platform.python_version(), **{package: _find_version(package) for package in PACKAGES}}


def _find_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
