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
from stormproof.hang.thread_frames import current_frames

REPORTING_THREAD_PREFIX = "hang-"
"""How the names of the threads begin that tell of the others."""
MAX_COLLECTIVES = 5
FLIGHT_RECORDER_TIMEOUT = 2.0
"""As long as the flight recorder is waited for: it asks the GPU, which may be what hangs."""
_WAIT_KINDS = {  # by the files that a stack passes
    "torch/distributed/": "in a collective",
    "torch/nn/parallel/distributed": "in a collective",
    "torch/autograd/": "in backward",  # where gradients are reduced over the ranks
    "torch/utils/data/": "waiting for the data loader",
}
_WAIT_PRIMITIVES = ("/threading.py", "/queue.py", "/selectors.py", "/multiprocessing/", "/concurrent/futures/")


def describe_wait(stack: list[FrameSummary], collective: str | None = None) -> str:
    """Where a thread waits, in a few words: of what kind the wait is, and the innermost line that is not Python's own.

    Args:
        stack: of the thread, outermost frame first.
        collective: one that has not completed; None where there is none.

    Example:
        >>> describe_wait([
        ...     FrameSummary("mine.py", 3, "main"),
        ...     FrameSummary("site-packages/torch/utils/data/dataloader.py", 1327, "_try_get_data"),
        ...     FrameSummary("lib/python3.11/queue.py", 180, "get"),
        ... ])
        'waiting for the data loader, in _try_get_data (site-packages/torch/utils/data/dataloader.py:1327)'
    """
    if not stack:
        return "the thread that trains has ended"
    file_frames = [(frame.filename.replace("\\", "/"), frame) for frame in reversed(stack)]
    wait_kinds = (kind for name, _ in file_frames for part, kind in _WAIT_KINDS.items() if part in name)
    name, frame = next(
        (file_frame for file_frame in file_frames if not any(part in file_frame[0] for part in _WAIT_PRIMITIVES)),
        file_frames[0],
    )
    location = f"in {frame.name} ({'/'.join(name.split('/')[-5:])}:{frame.lineno})"
    collective_notes = [] if collective is None else [f"with {collective} not completed"]
    return ", ".join([*list(wait_kinds)[:1], location, *collective_notes])


def thread_stack(thread: int) -> list[FrameSummary]:
    """The stack of a thread, by ``threading.get_ident``, outermost frame first; empty where it has ended."""
    frame = current_frames().get(thread)
    return [] if frame is None else list(traceback.extract_stack(frame))


def format_report(training_thread: int, collectives: list[dict[str, Any]] | None) -> str:
    """All that can be told of this process now.

    Args:
        training_thread: the identifier of the thread that trains.
        collectives: as :func:`last_collectives` gives them.
    """
    process = f"process {os.getpid()} on {socket.gethostname()}, {time.strftime('%Y-%m-%d %H:%M:%S %z')}"
    parts = [process, _format_threads(training_thread), _format_collectives(collectives), _format_children()]
    return "\n\n".join(part for part in parts if part) + "\n"


def last_collectives() -> list[dict[str, Any]] | None:
    """The last collectives of this process, the newest last, as torch's flight recorder has them; None: it is silent.

    It keeps them in a ring of its own, for NCCL and, in newer releases, for gloo.
    """
    results: list[list[dict[str, Any]]] = []
    job = BackgroundJob(lambda: results.append(_dump_flight_recorder()), "hang-flight-recorder")
    if wait([job], FLIGHT_RECORDER_TIMEOUT).not_done or not results:
        return None
    return results[0]


def pending_collective(collectives: list[dict[str, Any]] | None) -> str | None:
    """The name of the oldest collective that has not completed; None where there is none.

    Example:
        >>> pending_collective([{"profiling_name": "gloo:barrier", "state": "scheduled", "retired": False}])
        'gloo:barrier'
    """
    return next(
        (collective["profiling_name"] for collective in collectives or [] if not _is_completed(collective)), None
    )


def _is_completed(collective: dict[str, Any]) -> bool:
    return collective["state"] == "completed" or collective["retired"]


def _format_collectives(collectives: list[dict[str, Any]] | None) -> str:
    if collectives is None:
        return "the last collectives are not known: torch's flight recorder does not answer"
    if not collectives:
        return ""
    now = time.time_ns()
    lines = [
        f"  {collective['profiling_name']}, number {collective['collective_seq_id']} of group "
        f"{collective['process_group'][-1]}, "
        f"of sizes {collective['input_sizes']}: begun {(now - collective['time_created_ns']) / 1e9:.0f} s ago, "
        f"{'completed' if _is_completed(collective) else 'NOT completed'}"
        for collective in reversed(collectives[-MAX_COLLECTIVES:])
    ]
    return "\n".join(["the last collectives, the newest first:", *lines])


def _dump_flight_recorder() -> list[dict[str, Any]]:
    distributed = getattr(_C, "_distributed_c10d", None)  # some builds of torch have none
    for name in ("_dump_nccl_trace_json", "_dump_fr_trace_json"):  # the first is there where torch has NCCL
        dump: Callable[[bool, bool], bytes] | None = getattr(distributed, name, None)
        entries = [] if dump is None else json.loads(dump(True, False)).get("entries", [])
        if entries:
            return entries
    return []


def _format_threads(training_thread: int) -> str:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    reporting_threads = {ident for ident, name in names.items() if name.startswith(REPORTING_THREAD_PREFIX)}
    other_threads = sorted(set(current_frames()) - reporting_threads - {training_thread})
    parts = [
        (
            f"the thread that trains ({names.get(training_thread, training_thread)}), innermost call last:\n"
            f"{_format_stack(training_thread)}"
        )
    ]
    parts += [f"thread {names.get(thread_id, thread_id)}:\n{_format_stack(thread_id)}" for thread_id in other_threads]
    return "\n".join(parts).rstrip()


def _format_stack(thread: int) -> str:
    return "".join(traceback.format_list(thread_stack(thread)))


def _format_children() -> str:
    lines = list(_child_lines())
    return "\n".join(["child processes:", *lines]) if lines else ""


def _child_lines() -> Iterator[str]:
    for process in descendants(psutil.Process()):
        try:
            cpu = process.cpu_times()
            wchan = Path(f"/proc/{process.pid}/wchan")
            location = f", in the kernel's {wchan.read_text()}" if wchan.exists() else ""
            cpu_seconds = cpu.user + cpu.system
            yield f"  {process.pid} {process.name()}: {process.status()}{location}, {cpu_seconds:.1f} s of CPU"
        except (psutil.Error, OSError):  # it has ended meanwhile
            continue
