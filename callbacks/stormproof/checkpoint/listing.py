"""What a folder holds, at a glance: names, manifests and lengths, and no content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stormproof.checkpoint.commit_log import Log, read_log
from stormproof.checkpoint.file_names import LOG
from stormproof.checkpoint.manifest import Checkpoint
from stormproof.checkpoint.quarantine import quarantined
from stormproof.checkpoint.resolution import Bad, is_foreign, list_files, names_in, read_manifests, without_manifest
from stormproof.checkpoint.verification import misfit


@dataclass(frozen=True)
class Listing:
    """A folder at a glance; only :func:`stormproof.checkpoint.resolution.resolve` says what is good.

    Attributes:
        checkpoints: those whose manifest is whole and whose file has the right length, newest first.
        bad: those of which a glance shows that they are not as they were committed, newest first.
        quarantined: what was moved aside, and why, as far as the log knows.
        foreign: ``.ckpt`` files of other tools.
    """

    checkpoints: Sequence[Checkpoint]
    bad: Sequence[Bad]
    quarantined: Sequence[Bad]
    foreign: Sequence[str]


def glance(folder: Path) -> Listing:
    """Lists ``folder``; one that is not there is empty.

    Raises:
        OSError: if the folder cannot be read.
    """
    files = list_files(folder)
    names, log = names_in(files), read_log(folder / LOG)
    found = read_manifests(folder, [name for name in names if f"{name}.json" in files])
    bad = found.bad | {each.name: problem for each in found.whole if (problem := misfit(each)) is not None}
    unfinished = [name for name in names if f"{name}.json" not in files]
    bad |= dict.fromkeys(without_manifest(folder, unfinished, log), "its manifest is gone")
    return Listing(
        [each for each in found.whole if each.name not in bad],
        [Bad(name, bad[name]) for name in names if name in bad],
        _quarantined(folder, log),
        sorted(file for file in files if is_foreign(file)),
    )


def _quarantined(folder: Path, log: Log) -> list[Bad]:
    events = [event for event in log.events if event["event"] == "quarantined"]
    reasons = {event["name"]: str(event.get("reason", "")) for event in events}
    names = {file.partition(".")[0] for file in quarantined(folder)}
    return [Bad(name, reasons.get(name, "")) for name in sorted(names)]
