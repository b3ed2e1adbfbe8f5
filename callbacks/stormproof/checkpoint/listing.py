"""Lists the checkpoints of a folder by names, manifests and file sizes, without reading their content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stormproof.checkpoint.backends import Backend, Source, get_backend
from stormproof.checkpoint.commit_log import CommitLog, read_log
from stormproof.checkpoint.manifest import Checkpoint
from stormproof.checkpoint.resolution import (
    BadCheckpoint,
    extract_names,
    find_without_manifest,
    is_foreign,
    list_files,
    read_manifests,
)


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


def list_folder(source: Source) -> Listing:
    """Lists a folder or an object store. A missing folder counts as empty.

    Raises:
        OSError: If the folder cannot be read.
    """
    backend = get_backend(source)
    files = list_files(backend)
    names, log = extract_names(files), read_log(backend.log)
    folder_manifests = read_manifests(backend, [name for name in names if f"{name}.json" in files])
    bad_reasons = folder_manifests.bad_reasons | {
        checkpoint.name: problem
        for checkpoint in folder_manifests.checkpoints
        if (problem := backend.find_size_problem(checkpoint)) is not None
    }
    unfinished_names = [name for name in names if f"{name}.json" not in files]
    bad_reasons |= dict.fromkeys(find_without_manifest(backend, unfinished_names, log), "its manifest is missing")
    return Listing(
        [checkpoint for checkpoint in folder_manifests.checkpoints if checkpoint.name not in bad_reasons],
        [BadCheckpoint(name, bad_reasons[name]) for name in names if name in bad_reasons],
        _list_quarantined(backend, log),
        sorted(file for file in files if is_foreign(file)),
    )


def _list_quarantined(backend: Backend, log: CommitLog) -> list[BadCheckpoint]:
    events = [event for event in log.events if event["event"] == "quarantined"]
    reasons = {event["name"]: str(event.get("reason", "")) for event in events}
    names = {file.partition(".")[0] for file in backend.list_quarantined_files()}
    return [BadCheckpoint(name, reasons.get(name, "")) for name in sorted(names)]
