"""Chooses the places of faults in an uninterrupted run."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice

from stormproof.replay.comparison.history import History, saved_steps
from stormproof.replay.faults.fault import Fault, FaultKind
from stormproof.replay.ledger import Save
from stormproof.replay.pause import PausePoint

DEFAULT_SIZE_LIMIT = 512
"""Size in bytes of a partial checkpoint if the size of the whole file is unknown."""
KILLS_BEFORE = (0, 1, 4, 7)
"""Positions in the list of other faults before which a kill at a step is planned."""


def plan_faults(
    reference: History,
    *,
    ranks: int = 1,
    count: int = 12,
    kinds: Collection[FaultKind] = tuple(FaultKind),
    sizes: dict[str, int] | None = None,
    seed: int = 0,
) -> list[Fault]:
    """Returns faults, the most informative ones first.

    Kills are shortly after a save, so that the restarted command repeats few steps.

    Args:
        reference: The uninterrupted run of rank 0.
        ranks: Number of ranks.
        count: Maximum number of faults.
        kinds: Kinds of faults.
        sizes: Size of each checkpoint in bytes, by path.
        seed: Seed of the places that are drawn.
    """
    steps = _kill_steps(reference, random.Random(seed))  # noqa: S311 (not for cryptography)
    kills = (Fault(FaultKind.KILL, step, PausePoint("step", step)) for step in steps)
    others = _other_faults(reference, ranks, sizes or {})
    wanted_kills = [kill for kill in kills if FaultKind.KILL in kinds]
    wanted = [fault for fault in others if fault.kind in kinds]
    return _mix(wanted_kills, wanted)[:count]


def _mix(kills: Sequence[Fault], others: Sequence[Fault]) -> list[Fault]:
    """Returns kills at different steps between the other faults: few at first, so that each kind occurs early."""
    rest, mixed = list(kills), list[Fault]()
    for index, fault in enumerate(others):
        if index in KILLS_BEFORE:
            mixed += rest[:1]
            rest = rest[1:]
        mixed.append(fault)
    return mixed + rest


def resumable_steps(reference: History) -> list[int]:
    """Returns the steps at which the uninterrupted run saved, without its first and last moment."""
    return sorted({save.after_step for save in reference.saves if 0 < save.after_step < len(reference.steps)})


def _kill_steps(reference: History, generator: random.Random) -> Iterator[int]:
    """Yields steps to kill at: after a save inside an epoch, after one at an epoch end, late, early, and others."""
    total, saved = len(reference.steps), resumable_steps(reference)
    boundaries = set(reference.epochs)
    inside = [step for step in saved if step not in boundaries]
    at_ends = [step for step in saved if step in boundaries]
    preferred = [*_middle(inside, 0.4), *_middle(at_ends, 0.4), *_middle(inside, 0.75), *_middle(saved, 0.0)]
    rest = sorted(set(saved) - set(preferred))
    generator.shuffle(rest)
    used = set[int]()
    for index, step in enumerate([*dict.fromkeys(preferred), *rest, *generator.sample(saved, len(saved))]):
        following = min((other for other in saved if other > step), default=total)
        kill = min(step + 1 + index % 3, following)
        if kill not in used and kill < total:
            used.add(kill)
            yield kill


def _middle(steps: Sequence[int], share: float) -> list[int]:
    return [steps[int(share * (len(steps) - 1))]] if steps else []


def _other_faults(reference: History, ranks: int, sizes: dict[str, int]) -> Iterator[Fault]:
    total, saved = len(reference.steps), resumable_steps(reference)
    if not saved:
        return
    if ranks > 1:
        yield Fault(FaultKind.RANK, saved[0] + 1, PausePoint("step", saved[0] + 1, rank=ranks - 1))
    epoch_end = _event(reference.epochs, saved[0], total)
    if epoch_end is not None:
        yield Fault(FaultKind.EPOCH_END, reference.epochs[epoch_end], PausePoint("epoch", epoch_end + 1))
    yield _termination(saved, total)
    yield from _save_faults(reference, saved, sizes, FaultKind.MID_SAVE)
    torn = _with_older_file(reference, saved)
    if torn is not None and torn + 2 < total:
        yield Fault(FaultKind.TORN, torn + 2, PausePoint("step", torn + 2))
    validation = _event(reference.validations, saved[0], total)
    if validation is not None:
        place = PausePoint("validation", validation + 1)
        yield Fault(FaultKind.VALIDATION, reference.validations[validation], place)
    yield from _save_faults(reference, saved, sizes, FaultKind.FULL_DISK)
    yield from _renames(reference, saved)


def _termination(saved: Sequence[int], total: int) -> Fault:
    """Returns a SIGTERM at a step at which the command does not save anyway."""
    start = saved[len(saved) // 3]
    end = min((step for step in saved if step > start), default=total)
    step = max((start + end) // 2, 1)
    return Fault(FaultKind.TERM, step, PausePoint("step", step))


def _with_older_file(reference: History, saved: Sequence[int]) -> int | None:
    """Returns the first saved step after which a file of an older checkpoint exists, too."""
    for step in saved:
        files = saved_steps(save for save in reference.saves if save.after_step <= step)
        if len({older for older in files.values() if older > 0}) > 1:
            return step
    return None


def _event(events: Sequence[int], after: int, before: int) -> int | None:
    """Returns the index of an event between two steps, from the middle of the candidates."""
    candidates = [index for index, step in enumerate(events) if after <= step < before and step not in events[:index]]
    return candidates[len(candidates) // 3] if candidates else None


def _save_faults(reference: History, saved: Sequence[int], sizes: dict[str, int], kind: FaultKind) -> Iterator[Fault]:
    """Yields a fault in a save after which an older checkpoint exists, if there is one."""
    step = saved[min(1, len(saved) - 1)]
    opened = [save for save in reference.saves if save.phase == "open"]
    for index, save in enumerate(opened):
        if save.after_step == step:
            kills = kind is FaultKind.MID_SAVE
            point = PausePoint("save", index + 1, "open", dies_at_size_limit=kills)
            yield Fault(kind, step, point, _size_limit(save.path, sizes) if kills else 0)
            return


def _size_limit(path: str, sizes: dict[str, int]) -> int:
    return max(sizes.get(path, 2 * DEFAULT_SIZE_LIMIT) // 2, 1)


def _renames(reference: History, saved: Sequence[int]) -> Iterator[Fault]:
    step = saved[min(1, len(saved) - 1)]
    sources = {save.source for save in reference.saves if save.phase == "replace" and save.after_step == step}
    closed = [save for save in reference.saves if save.phase == "close"]
    yield from islice(_first_closed(closed, step, sources), 1)


def _first_closed(closed: Iterable[Save], step: int, sources: set[str]) -> Iterator[Fault]:
    for index, save in enumerate(closed):
        if save.after_step == step and save.path in sources:
            yield Fault(FaultKind.BEFORE_RENAME, step, PausePoint("save", index + 1, "close"))
