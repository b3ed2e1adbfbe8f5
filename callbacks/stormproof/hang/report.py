"""What a process that hangs is doing: the stacks of its threads, its last collectives, its child processes."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path
from traceback import FrameSummary
from typing import Any

import psutil
from torch import _C

from stormproof.checkpoint.background_thread import BackgroundJob
from stormproof.hang.process_activity import descendants
from stormproof.hang.thread_frames import frames

OWN_THREADS = "hang-"
"""How the names of the threads begin that tell of the others."""
SHOWN_COLLECTIVES = 5
RECORDER_SECONDS = 2.0
"""As long as the flight recorder is waited for: it asks the GPU, which may be what hangs."""
_KINDS = {  # by the files that a stack passes
    "torch/distributed/": "in a collective",
    "torch/nn/parallel/distributed": "in a collective",
    "torch/autograd/": "in backward",  # where gradients are reduced over the ranks
    "torch/utils/data/": "waiting for the data loader",
}
_WAITING = ("/threading.py", "/queue.py", "/selectors.py", "/multiprocessing/", "/concurrent/futures/")


def where_it_stands(stack: list[FrameSummary], collective: str | None = None) -> str:
    """Where a thread waits, in a few words: of what kind the wait is, and the innermost line that is not Python's own.

    Args:
        stack: of the thread, outermost frame first.
        collective: one that has not completed; None where there is none.

    Example:
        >>> where_it_stands([
        ...     FrameSummary("mine.py", 3, "main"),
        ...     FrameSummary("site-packages/torch/utils/data/dataloader.py", 1327, "_try_get_data"),
        ...     FrameSummary("lib/python3.11/queue.py", 180, "get"),
        ... ])
        'waiting for the data loader, in _try_get_data (site-packages/torch/utils/data/dataloader.py:1327)'
    """
    if not stack:
        return "the thread that trains has ended"
    inwards = [(frame.filename.replace("\\", "/"), frame) for frame in reversed(stack)]
    kinds = (kind for name, _ in inwards for part, kind in _KINDS.items() if part in name)
    name, frame = next((each for each in inwards if not any(part in each[0] for part in _WAITING)), inwards[0])
    place = f"in {frame.name} ({'/'.join(name.split('/')[-5:])}:{frame.lineno})"
    waits = [] if collective is None else [f"with {collective} not completed"]
    return ", ".join([*list(kinds)[:1], place, *waits])


def stack_of(thread: int) -> list[FrameSummary]:
    """The stack of a thread, by ``threading.get_ident``, outermost frame first; empty where it has ended."""
    frame = frames().get(thread)
    return [] if frame is None else list(traceback.extract_stack(frame))


def report(trains: int, collectives: list[dict[str, Any]] | None) -> str:
    """All that can be told of this process now.

    Args:
        trains: the identifier of the thread that trains.
        collectives: as :func:`last_collectives` gives them.
    """
    process = f"process {os.getpid()} on {socket.gethostname()}, {time.strftime('%Y-%m-%d %H:%M:%S %z')}"
    parts = [process, _threads(trains), _told(collectives), _children()]
    return "\n\n".join(part for part in parts if part) + "\n"


def last_collectives() -> list[dict[str, Any]] | None:
    """The last collectives of this process, the newest last, as torch's flight recorder has them; None: it is silent.

    It keeps them in a ring of its own, for NCCL and, in newer releases, for gloo.
    """
    answers: list[list[dict[str, Any]]] = []
    asked = BackgroundJob(lambda: answers.append(_recorded()), "hang-flight-recorder")
    if wait([asked], RECORDER_SECONDS).not_done or not answers:
        return None
    return answers[0]


def pending(collectives: list[dict[str, Any]] | None) -> str | None:
    """The name of the oldest collective that has not completed; None where there is none.

    Example:
        >>> pending([{"profiling_name": "gloo:barrier", "state": "scheduled", "retired": False}])
        'gloo:barrier'
    """
    return next((each["profiling_name"] for each in collectives or [] if not _has_completed(each)), None)


def _has_completed(collective: dict[str, Any]) -> bool:
    return collective["state"] == "completed" or collective["retired"]


def _told(collectives: list[dict[str, Any]] | None) -> str:
    if collectives is None:
        return "the last collectives are not known: torch's flight recorder does not answer"
    if not collectives:
        return ""
    now = time.time_ns()
    lines = [
        f"  {each['profiling_name']}, number {each['collective_seq_id']} of group {each['process_group'][-1]}, "
        f"of sizes {each['input_sizes']}: begun {(now - each['time_created_ns']) / 1e9:.0f} s ago, "
        f"{'completed' if _has_completed(each) else 'NOT completed'}"
        for each in reversed(collectives[-SHOWN_COLLECTIVES:])
    ]
    return "\n".join(["the last collectives, the newest first:", *lines])


def _recorded() -> list[dict[str, Any]]:
    distributed = getattr(_C, "_distributed_c10d", None)  # some builds of torch have none
    for name in ("_dump_nccl_trace_json", "_dump_fr_trace_json"):  # the first is there where torch has NCCL
        dump: Callable[[bool, bool], bytes] | None = getattr(distributed, name, None)
        entries = [] if dump is None else json.loads(dump(True, False)).get("entries", [])
        if entries:
            return entries
    return []


def _threads(trains: int) -> str:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    ours = {ident for ident, name in names.items() if name.startswith(OWN_THREADS)}
    others = sorted(set(frames()) - ours - {trains})
    parts = [f"the thread that trains ({names.get(trains, trains)}), innermost call last:\n{_formatted(trains)}"]
    parts += [f"thread {names.get(each, each)}:\n{_formatted(each)}" for each in others]
    return "\n".join(parts).rstrip()


def _formatted(thread: int) -> str:
    return "".join(traceback.format_list(stack_of(thread)))


def _children() -> str:
    lines = list(_child_lines())
    return "\n".join(["child processes:", *lines]) if lines else ""


def _child_lines() -> Iterator[str]:
    for process in descendants(psutil.Process()):
        try:
            cpu = process.cpu_times()
            waits = Path(f"/proc/{process.pid}/wchan")
            place = f", in the kernel's {waits.read_text()}" if waits.exists() else ""
            yield f"  {process.pid} {process.name()}: {process.status()}{place}, {cpu.user + cpu.system:.1f} s of CPU"
        except (psutil.Error, OSError):  # it has ended meanwhile
            continue
