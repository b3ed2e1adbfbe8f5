"""Lists the checkpoints of a folder by names, manifests and file sizes, without reading their content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stormproof.checkpoint.commit_log import CommitLog, read_log
from stormproof.checkpoint.manifest import Checkpoint
from stormproof.checkpoint.quarantine import list_quarantined_files
from stormproof.checkpoint.resolution import (
    BadCheckpoint,
    extract_names,
    find_without_manifest,
    get_log_source,
    is_foreign,
    list_files,
    read_manifests,
)
from stormproof.checkpoint.storage import AnyStorage, ObjectStorage, as_storage
from stormproof.checkpoint.verification import find_object_size_problem, find_size_problem


@dataclass(frozen=True)
class Listing:
    """Checkpoints of a folder. Use :func:`stormproof.checkpoint.resolution.resolve` to verify their content.

    Attributes:
        checkpoints: Checkpoints with an intact manifest and the right file size, newest first.
        bad_checkpoints: Committed checkpoints with a missing or damaged manifest or a wrong file size, newest first.
        quarantined_checkpoints: Checkpoints in ``quarantine/``, with the reasons from the log.
        foreign_files: ``.ckpt`` files of other tools.
    """

    checkpoints: Sequence[Checkpoint]
    bad_checkpoints: Sequence[BadCheckpoint]
    quarantined_checkpoints: Sequence[BadCheckpoint]
    foreign_files: Sequence[str]


def list_folder(folder: Path | AnyStorage) -> Listing:
    """Lists a folder or an object store. A missing folder counts as empty.

    Raises:
        OSError: If the folder cannot be read.
    """
    storage = as_storage(folder)
    files = list_files(storage)
    names, log = extract_names(files), read_log(get_log_source(storage))
    folder_manifests = read_manifests(storage, [name for name in names if f"{name}.json" in files])
    bad_reasons = folder_manifests.bad_reasons | {
        checkpoint.name: problem
        for checkpoint in folder_manifests.checkpoints
        if (problem := _find_size_problem(storage, checkpoint)) is not None
    }
    unfinished_names = [name for name in names if f"{name}.json" not in files]
    bad_reasons |= dict.fromkeys(find_without_manifest(storage, unfinished_names, log), "its manifest is missing")
    return Listing(
        [checkpoint for checkpoint in folder_manifests.checkpoints if checkpoint.name not in bad_reasons],
        [BadCheckpoint(name, bad_reasons[name]) for name in names if name in bad_reasons],
        _list_quarantined(storage, log),
        sorted(file for file in files if is_foreign(file)),
    )


def _find_size_problem(storage: AnyStorage, checkpoint: Checkpoint) -> str | None:
    if isinstance(storage, ObjectStorage):
        return find_object_size_problem(storage, checkpoint)
    return find_size_problem(checkpoint)


def _list_quarantined(storage: AnyStorage, log: CommitLog) -> list[BadCheckpoint]:
    events = [event for event in log.events if event["event"] == "quarantined"]
    reasons = {event["name"]: str(event.get("reason", "")) for event in events}
    names = {file.partition(".")[0] for file in list_quarantined_files(storage)}
    return [BadCheckpoint(name, reasons.get(name, "")) for name in sorted(names)]
