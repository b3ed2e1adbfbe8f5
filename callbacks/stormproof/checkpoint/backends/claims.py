"""Claims of sequence numbers in an object store, which fence a process that lost the lease.

A commit creates ``claims/000012.json`` before it uploads anything, so that no two processes ever write the same names.
An attempt that begins creates the manifest of each claim that has none, with the content of an aborted commit. The
previous owner, if it is still uploading, can then no longer create that manifest.
"""

from __future__ import annotations

import json
import re
import secrets

from stormproof.checkpoint.file_names import format_stem, is_stem
from stormproof.checkpoint.manifest import ABORTED_PREFIX
from stormproof.checkpoint.storage import ObjectStorage

CLAIMS_FOLDER_NAME = "claims"
_NAME_PATTERN = re.compile(r"([0-9]{6,})\.json")


def list_claimed_sequences(storage: ObjectStorage) -> list[int]:
    """Returns the claimed sequence numbers, lowest first."""
    matches = (_NAME_PATTERN.fullmatch(entry.name) for entry in storage.list(CLAIMS_FOLDER_NAME))
    return sorted(int(match[1]) for match in matches if match)


def claim_sequence(storage: ObjectStorage, sequence: int, step: int, token: str) -> bool:
    """Claims the names of a commit. Returns False if another process claimed the sequence number.

    Args:
        storage: Object store.
        sequence: Sequence number of the commit.
        step: Step of the checkpoint.
        token: Random ID of the process. The same process may claim the same names again.
    """
    claim = {"name": format_stem(sequence, step), "token": token}
    return storage.put_if_absent(_format_name(sequence), json.dumps(claim).encode())


def release_claims(storage: ObjectStorage, below: int) -> None:
    """Deletes the claims below a sequence number that this process committed."""
    storage.delete(_format_name(sequence) for sequence in list_claimed_sequences(storage) if sequence < below)


def abort_pending_commits(storage: ObjectStorage) -> set[str]:
    """Aborts the commits that are claimed and have no manifest. Only the owner of the lease calls it.

    Afterwards, a previous owner of the lease can no longer commit.

    Returns:
        The created manifests of aborted commits.
    """
    manifests = {entry.name for entry in storage.list()}
    aborted: set[str] = set()
    for sequence in list_claimed_sequences(storage):
        name = _read_name(storage, sequence)
        if name is None or f"{name}.json" in manifests:
            continue
        content = ABORTED_PREFIX + json.dumps(secrets.token_hex(8)).encode() + b"}\n"
        if storage.put_if_absent(f"{name}.json", content):
            aborted.add(f"{name}.json")
    return aborted


def _read_name(storage: ObjectStorage, sequence: int) -> str | None:
    """Returns the name in a claim. None if it is damaged, which only another program can cause."""
    try:
        name = json.loads(storage.read(_format_name(sequence)))["name"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return name if is_stem(name) else None


def _format_name(sequence: int) -> str:
    return f"{CLAIMS_FOLDER_NAME}/{sequence:06d}.json"
