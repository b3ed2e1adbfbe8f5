"""Damages folders of real checkpoints at random and counts how many corruptions are detected before loading.

    python scripts/benchmarks/corruptions.py --count 1000 --seed 0

A corruption damages one file: a checkpoint, its manifest or the commit log. It counts as detected if:

- the resolution reports the checkpoint of the file as damaged or lost, or the log as damaged,
- it chooses the newest undamaged checkpoint, and
- torch has not unpickled a damaged file.

Half of the resolutions read every checkpoint, the others stop at the chosen one. If a corruption leaves the bytes
unchanged, or only removes the last line of the log as a crash can do, it is drawn again.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stormproof.checkpoint import CommitInfo, Store

STEPS = (10, 20, 30, 40, 50)
LOG = "commits.log"


KINDS = ("cut", "flipped bit", "zeroed range", "swapped", "replaced", "emptied", "deleted")
FILES = ("checkpoint", "manifest", "log")


@dataclass(frozen=True)
class Corruption:
    """A corruption: the kind of damage, the kind of file, and the result of the detection."""

    kind: str
    file: str
    is_found: bool
    why_not: str = ""


def make_folder(folder: Path) -> Store:
    """Creates a folder with a real checkpoint (model and AdamW state) at each of STEPS."""
    store = Store(folder)
    attempt = store.begin_attempt(store.resolve())
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ELU(), torch.nn.Linear(32, 4))
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(max(STEPS) + 1):
        optimizer.zero_grad()
        model(torch.randn(8, 16)).square().mean().backward()
        optimizer.step()
        if step in STEPS:
            state = {
                "global_step": step, "epoch": 0,
                "state_dict": model.state_dict(), "optimizer_states": [optimizer.state_dict()],
            }  # fmt: skip
            store.commit(
                lambda file, s=state: torch.save(s, file), CommitInfo(step=step, epoch=0, world_size=1), attempt=attempt
            )
    return store


def corrupt(
    good: Path,
    copy: Path,
    generator: random.Random,
    *,
    kinds: Sequence[str] = KINDS,
    files: Sequence[str] = FILES,
) -> Corruption:
    """Copies ``good`` to ``copy``, damages one file there (two if they are swapped) and checks the detection.

    The kind of damage is one of ``kinds``, the kind of file one of ``files``.
    """
    shutil.copytree(good, copy)
    try:
        return _corrupt(copy, generator, generator.choice(files), generator.choice(kinds))
    finally:
        shutil.rmtree(copy)


def _corrupt(copy: Path, generator: random.Random, file: str, kind: str) -> Corruption:
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    suffix = {"checkpoint": ".ckpt", "manifest": ".json", "log": ".log"}[file]
    paths = sorted(path for path in copy.iterdir() if path.suffix == suffix)
    path = generator.choice(paths)
    candidates = [candidate for candidate in paths if candidate != path] or sorted(
        copy.glob("*.json")
    )  # there is one log
    after = before
    while after == before or after.get(LOG) == before[LOG][: before[LOG][:-1].rindex(b"\n") + 1]:
        for name, content in before.items():
            (copy / name).write_bytes(content)
        _damage(kind, path, generator.choice(candidates), generator)
        after = _state(copy)
    damaged = {name for name in before if after.get(name) != before[name]}
    return Corruption(kind, file, *_find_corruption(Store(copy), damaged, thorough=generator.random() < 0.5))


def _damage(kind: str, path: Path, other_path: Path, generator: random.Random) -> None:
    """Damages ``path``, and also ``other_path`` if the two are swapped."""
    content = path.read_bytes()
    start, end = sorted(generator.sample(range(1, len(content)), 2))
    match kind:
        case "cut":
            path.write_bytes(content[:start])
        case "flipped bit":
            path.write_bytes(
                content[:start] + bytes([content[start] ^ 1 << generator.randrange(8)]) + content[start + 1 :]
            )
        case "zeroed range":
            path.write_bytes(content[:start] + bytes(end - start) + content[end:])
        case "swapped":
            path.write_bytes(other_path.read_bytes())
            other_path.write_bytes(content)
        case "replaced":
            path.write_bytes(other_path.read_bytes())
        case "emptied":
            path.write_bytes(b"")
        case "deleted":
            path.unlink()


def _state(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _find_corruption(store: Store, damaged: set[str], *, thorough: bool) -> tuple[bool, str]:
    hurt = {Path(name).stem for name in damaged if name != LOG}
    names = [f"{sequence:06d}-step-{step}" for sequence, step in enumerate(STEPS, 1)]
    expected = [name for name in names if name not in hurt][-1]
    loaded: list[str] = []
    load = torch.load

    def recording_load(path: Any, *arguments: Any, **options: Any) -> Any:
        loaded.append(Path(path).name)
        return load(path, *arguments, **options)

    torch.load = recording_load
    try:
        resolution = store.resolve(verify_all=thorough)
    finally:
        torch.load = load
    chosen = store.choose_checkpoint(resolution)
    reported = {bad.name for bad in resolution.bad_checkpoints} | set(resolution.lost_names)
    checks = {
        f"chose {chosen and chosen.name}": chosen is not None and chosen.name == expected,
        f"reported {sorted(reported)} of {sorted(hurt)}": reported == hurt if thorough else reported <= hurt,
        "did not report a newer checkpoint": reported >= {name for name in hurt if name > expected},
        "did not report the log": LOG not in damaged or bool(resolution.log_problems) or resolution.is_log_torn,
        f"loaded {loaded}": not hurt & {Path(name).stem for name in loaded},
    }
    missed = [why for why, good in checks.items() if not good]
    return not missed, "; ".join(missed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    generator = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        good = make_folder(Path(name) / "good").folder
        start = time.perf_counter()
        corruptions = [corrupt(good, Path(name) / "copy", generator) for _ in range(arguments.count)]
        seconds = time.perf_counter() - start
    for corruption in corruptions:
        if not corruption.is_found:
            print(f"missed: {corruption.kind} {corruption.file}: {corruption.why_not}")
    counts = Counter(f"{corruption.file} {corruption.kind}" for corruption in corruptions)
    kinds = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    found_count = sum(corruption.is_found for corruption in corruptions)
    print(
        f"{kinds}: found {found_count} of {len(corruptions)}, missed {len(corruptions) - found_count}, {seconds:.1f} s"
    )


if __name__ == "__main__":
    main()
