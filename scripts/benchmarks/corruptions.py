"""Damages folders of real checkpoints at random and counts how many corruptions are detected before loading.

    python scripts/benchmarks/corruptions.py --count 1000 --seed 0 [--object-store | --sharded]

A corruption damages one file: a checkpoint, its manifest or the commit log. With ``--object-store``, it damages one
object of an object store in memory, where the log consists of several objects. With ``--sharded``, each checkpoint is
a folder of three files, one of which is damaged. A corruption counts as detected if:

- the resolution reports the checkpoint of the file as damaged or lost, or the log as damaged,
- it chooses the newest undamaged checkpoint, and
- torch has not unpickled a damaged file.

Half of the resolutions read every checkpoint, the others stop at the chosen one. If a corruption leaves the bytes
unchanged, or only removes the last line of the log as a crash can do, it is drawn again.
"""

from __future__ import annotations

import argparse
import io
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from obstore.store import MemoryStore

from stormproof.checkpoint import CommitInfo, Store
from stormproof.checkpoint.file_names import UNSHARDED_FILE
from stormproof.checkpoint.sharding.shard_writer import ShardWriter
from stormproof.checkpoint.storage import ObjectStorage
from stormproof.resume.sharded_state import pop_state

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


def make_folder(folder: Path, *, is_sharded: bool = False) -> Store:
    """Creates a folder with a real checkpoint at each of STEPS."""
    return commit_steps(Store(folder), is_sharded=is_sharded)


def commit_steps(store: Store, *, is_sharded: bool = False) -> Store:
    """Commits a real checkpoint (model and AdamW state) at each of STEPS to an empty store."""
    shards = ShardWriter(store.storage, 0)
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
            info = CommitInfo(step=step, epoch=0, world_size=1)
            if is_sharded:
                shards.plan(pop_state(state))
                shards.stage()
                store.commit_sharded(lambda name, s=state: shards.write(name, s), info, attempt=attempt)
            else:
                store.commit(lambda file, s=state: torch.save(s, file), info, attempt=attempt)
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
    before = _state(copy)
    suffix = {"checkpoint": ".ckpt", "manifest": ".json", "log": ".log"}[file]
    paths = sorted(copy / name for name in before if Path(name).parts[0].endswith(suffix))
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


def corrupt_object(
    before: Mapping[str, bytes], folder: Path, generator: random.Random, *, kinds: Sequence[str] = KINDS
) -> Corruption:
    """Damages one object (two if they are swapped) in a new object store and checks the detection.

    Args:
        before: Content of all objects, by name.
        folder: Existing folder for temporary files.
        generator: Chooses the object and the damage.
        kinds: Kinds of damage.
    """
    file, kind = generator.choice(FILES), generator.choice(kinds)
    suffix = {"checkpoint": ".ckpt", "manifest": ".json", "log": ".jsonl"}[file]
    names = sorted(name for name in before if name.endswith(suffix))
    after = dict(before)
    while after == before or _lacks_last_append(before, after):
        after = dict(before)
        pair = generator.sample(names, 2)
        paths = [folder / "first", folder / "second"]
        for path, name in zip(paths, pair, strict=True):
            path.write_bytes(before[name])
        _damage(kind, *paths, generator)
        after = {name: content for name, content in before.items() if name not in pair}
        after |= {name: path.read_bytes() for path, name in zip(paths, pair, strict=True) if path.exists()}
    storage = ObjectStorage("s3://bucket/run", store=MemoryStore())
    for name, content in after.items():
        storage.put_if_absent(name, content)
    damaged = {name for name in before if after.get(name) != before[name]}
    return Corruption(kind, file, *_find_corruption(Store(storage), damaged, thorough=generator.random() < 0.5))


def _lacks_last_append(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> bool:
    """Returns whether only the last object of the log is missing, as after a crash before it was created."""
    last = max(name for name in before if name.startswith("log/"))
    return {**before, last: b""} == {**after, last: b""} and not after.get(last)


def read_objects(storage: ObjectStorage) -> dict[str, bytes]:
    """Returns the content of the checkpoints, their manifests and the log, by name."""
    names = [entry.name for entry in storage.list() if not entry.is_folder]
    names += [f"log/{entry.name}" for entry in storage.list("log")]
    return {name: storage.read(name) for name in names}


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
    """Returns the content of all files, by their path in ``folder``."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _find_corruption(store: Store, damaged: set[str], *, thorough: bool) -> tuple[bool, str]:
    damaged_log_files = {name for name in damaged if name == LOG or name.startswith("log/")}
    hurt = {Path(Path(name).parts[0]).stem for name in damaged - damaged_log_files}
    names = [f"{sequence:06d}-step-{step}" for sequence, step in enumerate(STEPS, 1)]
    expected = [name for name in names if name not in hurt][-1]
    loaded: list[str] = []
    load = torch.load

    def recording_load(path: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(path, Path):
            loaded.append(path.parent.name if path.name == UNSHARDED_FILE else path.name)
        elif not isinstance(
            path, io.BytesIO
        ):  # non-tensor value of a sharded checkpoint; `meta.pt` was recorded before
            loaded.append(path.raw.content_name)
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
        "did not report the log": not damaged_log_files or bool(resolution.log_problems) or resolution.is_log_torn,
        f"loaded {loaded}": not hurt & {Path(name).stem for name in loaded},
    }
    missed = [why for why, good in checks.items() if not good]
    return not missed, "; ".join(missed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--object-store", action="store_true", help="damage the objects of an object store in memory")
    parser.add_argument("--sharded", action="store_true", help="damage sharded checkpoints")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    generator = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        start = time.perf_counter()
        if arguments.object_store:
            storage = ObjectStorage("s3://bucket/run", store=MemoryStore())
            commit_steps(Store(storage))
            objects = read_objects(storage)
            corruptions = [corrupt_object(objects, Path(name), generator) for _ in range(arguments.count)]
        else:
            good = make_folder(Path(name) / "good", is_sharded=arguments.sharded).folder
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
