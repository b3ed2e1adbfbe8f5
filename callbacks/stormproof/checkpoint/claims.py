"""Claims of sequence numbers, which fence a process that lost the lease of a storage that cannot rename.

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
from stormproof.checkpoint.storage import Fence, Storage

CLAIMS_FOLDER_NAME = "claims"
_NAME_PATTERN = re.compile(r"([0-9]{6,})\.json")


class SequenceClaims:
    """Claims in a storage.

    Args:
        storage: Storage of the checkpoints.
        token: Random ID of this process. The same process may claim the same names again.
    """

    def __init__(self, storage: Storage, token: str) -> None:
        self._storage, self._token = storage, token

    def list(self) -> list[int]:
        """Returns the claimed sequence numbers, lowest first."""
        matches = (_NAME_PATTERN.fullmatch(entry.name) for entry in self._storage.list(CLAIMS_FOLDER_NAME))
        return sorted(int(match[1]) for match in matches if match)

    def claim(self, sequence: int, step: int, fence: Fence | None) -> bool:
        """Claims the names of a commit, then calls ``fence``, before anything is uploaded.

        Args:
            sequence: Sequence number of the commit.
            step: Step of the checkpoint.
            fence: Raises if this attempt no longer owns the storage. None without a lease.

        Returns:
            False if another process claimed the sequence number.
        """
        content = {"name": format_stem(sequence, step), "token": self._token}
        is_claimed = self._storage.put_if_absent(format_claim(sequence), json.dumps(content).encode())
        if is_claimed and fence is not None:
            fence()
        return is_claimed

    def release(self, below: int) -> None:
        """Deletes the claims below a sequence number that this process committed."""
        self._storage.delete(format_claim(sequence) for sequence in self.list() if sequence < below)

    def abort_pending(self) -> set[str]:
        """Aborts the commits that are claimed and have no manifest. Only the owner of the lease calls it.

        Afterwards, a previous owner of the lease can no longer commit.

        Returns:
            The created manifests of aborted commits.
        """
        manifests = {entry.name for entry in self._storage.list()}
        aborted: set[str] = set()
        for sequence in self.list():
            name = self._read_name(sequence)
            if name is None or f"{name}.json" in manifests:
                continue
            content = ABORTED_PREFIX + json.dumps(secrets.token_hex(8)).encode() + b"}\n"
            if self._storage.put_if_absent(f"{name}.json", content):
                aborted.add(f"{name}.json")
        return aborted

    def _read_name(self, sequence: int) -> str | None:
        """Returns the name in a claim. None if it is damaged, which only another program can cause."""
        try:
            name = json.loads(self._storage.read(format_claim(sequence)))["name"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        return name if is_stem(name) else None


class NoClaims:
    """Makes no claims, because the owner of the lease is the only writer of a folder."""

    def list(self) -> list[int]:
        """Returns an empty list."""
        return []

    def claim(self, sequence: int, step: int, fence: Fence | None) -> bool:
        """Returns True."""
        return True

    def release(self, below: int) -> None:
        """Does nothing."""

    def abort_pending(self) -> set[str]:
        """Returns an empty set."""
        return set()


Claims = SequenceClaims | NoClaims


def format_claim(sequence: int) -> str:
    """Returns the name of a claim in the storage."""
    return f"{CLAIMS_FOLDER_NAME}/{sequence:06d}.json"
